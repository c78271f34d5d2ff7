"""Records as HTML. Every text passes through the templates' autoescape; nothing is marked safe."""

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from reasongenrm.generation.openai_client import ModelCard
from reasongenrm.judge.api import CallerOrder, OrderJudgment, PairwiseResponse
from reasongenrm.variants import VARIANTS
from reasongenrm.web.board import Board
from reasongenrm.web.words import ORDER_NAMES, Notice, explanation, headline

# A handler without public route or spinner.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def read(name: str) -> str:
    """A file of this package."""
    return (resources.files("reasongenrm.web") / name).read_text(encoding="utf-8")


def render(template: str, **values: object) -> str:
    """Fill one of the templates in this package's folder `templates`."""
    return _environment().get_template(template).render(**values)


def show_notice(notice: Notice) -> str:
    """An error, or another thing to know, in the verdict's place."""
    return render("notice.html.j2", notice=notice)


def show_judge(card: ModelCard) -> str:
    """Which judge it is, and what it says of itself."""
    return render("judge.html.j2", card=card)


def show_waiting(num_generations: int, num_ended: int) -> str:
    """That the judge is at work."""
    return render("waiting.html.j2", num_generations=num_generations, num_ended=num_ended)


def show_verdict(response: PairwiseResponse) -> str:
    """The verdict in large letters with what stands behind it."""
    return render("verdict.html.j2", response=response, headline=headline(response), explanation=explanation(response))


def show_order(order: CallerOrder, reasons: dict[int, str], judgments: dict[int, OrderJudgment], running: bool) -> str:
    """One order's column: its reasons as far as they are written, by vote, and what each chose."""
    texts = {"votes": sorted({*reasons, *judgments}), "reasons": reasons, "judgments": judgments}
    return render("order.html.j2", order=order, title=ORDER_NAMES[order], running=running, **texts)


def show_board(board: Board, root_path: str) -> str:
    """The leaderboard's tables, or why there is none."""
    if board.notice:
        return show_notice(board.notice)
    names = {name: variant.label for name, variant in VARIANTS.items()}
    return render("board.html.j2", board=board, names=names, root_path=root_path)


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: read(f"templates/{name}")),
    )
