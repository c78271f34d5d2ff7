"""prepare, distill, sample, score, train: one stage by itself, with the pipeline's own stage functions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reasongenrm.cli.console import out, print_json
from reasongenrm.cli.settings import (
    DEFAULT_STORE,
    ConfigOption,
    JsonOption,
    SetOption,
    StoreOption,
    absolute,
    make_config,
)

if TYPE_CHECKING:
    from reasongenrm.config import RunConfig
    from reasongenrm.store.artifacts import ArtifactRef, Store

ModelUri = Annotated[
    str, typer.Option("--model", metavar="URI", help="A model in the store, as `reasongenrm models` shows it.")
]
PromptsUri = Annotated[str, typer.Option("--prompts", metavar="URI", help="What `reasongenrm prepare` printed.")]


def prepare(
    preferences: Annotated[
        str, typer.Option(metavar="URI", help="Preference pairs: a JSON Lines file, s3:// or a hub name.")
    ],
    model: Annotated[str, typer.Option(metavar="URI", help="Base model: a folder, GGUF file, s3:// or hub name.")],
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take at most this number of pairs.")] = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    as_json: JsonOption = False,
) -> None:
    """Import the base model and turn preference pairs into judge prompts.

    [bold]Example[/bold]

      reasongenrm prepare --preferences pairs.jsonl --model ./SmolLM2-135M-Instruct
    """
    from reasongenrm.data.import_model import import_model
    from reasongenrm.data.pairs import prepare_pairs

    with _opened(store, config, assignments, limit) as (opened, settings):
        base = import_model(opened, settings.model, absolute(model))
        prompts = prepare_pairs(opened, settings.pairs, absolute(preferences), base)
    _print({"model": base, "prompts": prompts}, as_json)


def distill(
    prompts: PromptsUri,
    teacher: Annotated[
        str, typer.Option(metavar="URI|URL", help="A model, or an OpenAI-compatible endpoint (http://.../v1).")
    ],
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Let a teacher, who is told the verdicts, write reasons.

    An endpoint's key is read from OPENAI_API_KEY.

    [bold]Example[/bold]

      reasongenrm distill --prompts s3://reasongenrm/prepare_pairs/... --teacher http://127.0.0.1:8000/v1
    """
    from reasongenrm.reasons.write import distill_reasons

    with _opened(store, config, assignments) as (opened, settings):
        reasons = distill_reasons(opened, settings.distill, _ref(prompts), absolute(teacher))
    _print({"reasons": reasons}, as_json)


def sample(
    prompts: PromptsUri,
    model: ModelUri,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Let an SFT model write reasons without seeing the verdicts (on-policy).

    [bold]Example[/bold]

      reasongenrm sample --prompts s3://reasongenrm/prepare_pairs/... --model s3://reasongenrm/train_sft/...
    """
    from reasongenrm.reasons.write import sample_reasons

    with _opened(store, config, assignments) as (opened, settings):
        reasons = sample_reasons(opened, settings.sample, _ref(model), _ref(prompts))
    _print({"reasons": reasons}, as_json)


def score(
    purpose: Annotated[
        Literal["sft", "dpo"],
        typer.Argument(help="sft: keep the best reason of a prompt (R*). dpo: choose a chosen and a rejected one."),
    ],
    model: ModelUri,
    prompts: PromptsUri,
    reasons: Annotated[str, typer.Option(metavar="URI", help="What `reasongenrm distill` or `sample` printed.")],
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Score reasons under a model and select what is trained on.

    [bold]Examples[/bold]

      reasongenrm score sft --model BASE --prompts PROMPTS --reasons REASONS

      reasongenrm score dpo --model SFT_MODEL --prompts PROMPTS --reasons ON_POLICY_REASONS
    """
    from reasongenrm.reasons.score import score_reasons
    from reasongenrm.reasons.select import select_preferences, select_reasons

    with _opened(store, config, assignments) as (opened, settings):
        model_ref, prompts_ref, reasons_ref = map(_ref, (model, prompts, reasons))
        scored = score_reasons(opened, settings.score, model_ref, prompts_ref, reasons_ref)
        if purpose == "sft":
            selected = {"examples": select_reasons(opened, settings.select, prompts_ref, scored)}
        else:
            selected = {"preferences": select_preferences(opened, settings.preferences, prompts_ref, scored)}
    _print({"scored": scored, **selected}, as_json)


def train(
    variant: Annotated[
        Literal["genrm", "sft", "dpo"],
        typer.Argument(help="genrm: verdicts alone. sft: reasons and verdicts. dpo: the SFT model's reasoning."),
    ],
    model: ModelUri,
    data: Annotated[
        str, typer.Option(metavar="URI", help="Examples or preferences: what `reasongenrm score` printed.")
    ],
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Train one variant; a training that was killed goes on from its last checkpoint.

    [bold]Examples[/bold]

      reasongenrm train sft --model BASE --data EXAMPLES --set sft.learning_rate=1e-4

      reasongenrm train dpo --model SFT_MODEL --data PREFERENCES
    """
    from reasongenrm.trainjob.launch import train_where_configured

    with _opened(store, config, assignments) as (opened, settings):
        model_ref, data_ref = _ref(model), _ref(data)
        if variant == "dpo":
            trained = train_where_configured(opened, settings.dpo, model=model_ref, preferences=data_ref)
        else:
            section = settings.genrm if variant == "genrm" else settings.sft
            trained = train_where_configured(opened, section, variant, model=model_ref, examples=data_ref)
    _print({"model": trained}, as_json)


@contextmanager
def _opened(
    store: str, config: "Path | None", assignments: list[str], limit: int | None = None
) -> "Iterator[tuple[Store, RunConfig]]":
    """The store and the run's configuration, for one stage on this machine."""
    from reasongenrm.processes.cpu_math import configure_cpu_math
    from reasongenrm.runs.local import open_store

    settings = make_config(config, assignments, limit)
    configure_cpu_math()
    with open_store(store) as opened:
        yield opened, settings


def _ref(uri: str) -> "ArtifactRef":
    from reasongenrm.store.artifacts import open_artifact

    return open_artifact(uri).ref()


def _print(refs: "dict[str, ArtifactRef]", as_json: bool) -> None:
    if as_json:
        print_json({name: ref.model_dump(mode="json") for name, ref in refs.items()})
        return
    for name, ref in refs.items():
        out.print(f"{name}: {ref.uri}", markup=False, soft_wrap=True)
