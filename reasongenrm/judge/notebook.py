"""Judgments as HTML, as a notebook shows them: the verdict, P(A) as a bar, the reasons. Every text is escaped.

One block with its styles in it and without scripts; the notebook's own colors of text and background stay.
"""

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from reasongenrm.records import Record

if TYPE_CHECKING:
    from jinja2 import Template


def judgment_html(answer: Record) -> str:
    """A judgment of the API (of a pair, a list or a single answer) as one block of HTML."""
    return _template().render(answer=answer)


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    text = (resources.files("reasongenrm.judge") / "judgment.html.j2").read_text(encoding="utf-8")
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.from_string(text)
