"""prepare, distill, sample, score, train: one stage by itself, with the pipeline's own stage functions."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from reasongenrm.cli.console import print_json, print_line
from reasongenrm.cli.settings import (
    DEFAULT_STORE,
    ColumnsOption,
    ConfigOption,
    JsonOption,
    SetOption,
    StoreOption,
    absolute,
    assign,
    columns_of,
    make_config,
)

if TYPE_CHECKING:
    from reasongenrm.config import RunConfig
    from reasongenrm.store.artifacts import ArtifactRef, Store

ModelUri = Annotated[str, Option("--model", metavar="URI", help="In the store, as `reasongenrm models` shows it.")]
PromptsUri = Annotated[str, Option("--prompts", metavar="URI", help="What `reasongenrm prepare` printed.")]


def _stage(work: "Callable[..., dict[str, ArtifactRef]]") -> Callable[..., None]:
    """A command with the options of `work` besides --store, --config, --set and --json; prints what `work` made."""

    def command(
        store: StoreOption = DEFAULT_STORE,
        config: ConfigOption = None,
        assignments: SetOption = [],
        as_json: JsonOption = False,
        **options: Any,
    ) -> None:
        from reasongenrm.processes.cpu_math import configure_cpu_math
        from reasongenrm.runs.local import open_store

        settings = make_config(config, assignments)
        configure_cpu_math()
        with open_store(store) as opened:
            made = work(opened, settings, **options)
        if as_json:
            print_json({name: ref.model_dump(mode="json") for name, ref in made.items()})
            return
        for name, ref in made.items():
            print_line(f"{name}: {ref.uri}")

    _, _, *own = inspect.signature(work).parameters.values()
    *shared, _ = inspect.signature(command).parameters.values()
    command.__name__, command.__doc__, command.__annotations__ = work.__name__, work.__doc__, {}
    command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # typer reads it
    return command


@_stage
def prepare(
    store: "Store",
    settings: "RunConfig",
    preferences: Annotated[
        str, Option(metavar="URI", help="Preference pairs (docs/data.md): a file, s3:// or a hub name.")
    ],
    model: Annotated[str, Option(metavar="URI", help="Base model: a folder, GGUF file, s3:// or a hub name.")],
    columns: ColumnsOption = None,
) -> "dict[str, ArtifactRef]":
    """Import the base model and turn preference pairs into judge prompts.

    [bold]Example[/bold]

      reasongenrm prepare --preferences pairs.jsonl --model ./SmolLM2-135M-Instruct
    """
    from reasongenrm.data.import_model import import_model
    from reasongenrm.data.pairs import prepare_pairs

    for assignment in columns_of(columns):
        settings = assign(settings, assignment)
    base = import_model(store, settings.model, absolute(model))
    return {"model": base, "prompts": prepare_pairs(store, settings.pairs, absolute(preferences), base)}


@_stage
def distill(
    store: "Store",
    settings: "RunConfig",
    prompts: PromptsUri,
    teacher: Annotated[
        str, Option(metavar="URI|URL", help="A model, or an OpenAI-compatible endpoint (http://.../v1).")
    ],
) -> "dict[str, ArtifactRef]":
    """Let a teacher, who is told the verdicts, write reasons.

    An endpoint's key is read from OPENAI_API_KEY.

    [bold]Example[/bold]

      reasongenrm distill --prompts s3://reasongenrm/prepare_pairs/... --teacher http://127.0.0.1:8000/v1
    """
    from reasongenrm.reasons.write import distill_reasons

    return {"reasons": distill_reasons(store, settings.distill, _ref(prompts), absolute(teacher))}


@_stage
def sample(store: "Store", settings: "RunConfig", prompts: PromptsUri, model: ModelUri) -> "dict[str, ArtifactRef]":
    """Let an SFT model write reasons without seeing the verdicts (on-policy).

    [bold]Example[/bold]

      reasongenrm sample --prompts s3://reasongenrm/prepare_pairs/... --model s3://reasongenrm/train_sft/...
    """
    from reasongenrm.reasons.write import sample_reasons

    return {"reasons": sample_reasons(store, settings.sample, _ref(model), _ref(prompts))}


@_stage
def score(
    store: "Store",
    settings: "RunConfig",
    purpose: Annotated[
        Literal["sft", "dpo"], Argument(help="sft: keep a prompt's best reason (R*). dpo: one chosen, one rejected.")
    ],
    model: ModelUri,
    prompts: PromptsUri,
    reasons: Annotated[str, Option(metavar="URI", help="What `reasongenrm distill` or `sample` printed.")],
) -> "dict[str, ArtifactRef]":
    """Score reasons under a model and select what is trained on.

    [bold]Examples[/bold]

      reasongenrm score sft --model BASE --prompts PROMPTS --reasons REASONS

      reasongenrm score dpo --model SFT_MODEL --prompts PROMPTS --reasons ON_POLICY_REASONS
    """
    from reasongenrm.reasons.score import score_reasons
    from reasongenrm.reasons.select import select_preferences, select_reasons

    judged = _ref(prompts)
    scored = score_reasons(store, settings.score, _ref(model), judged, _ref(reasons))
    if purpose == "sft":
        return {"scored": scored, "examples": select_reasons(store, settings.select, judged, scored)}
    return {"scored": scored, "preferences": select_preferences(store, settings.preferences, judged, scored)}


@_stage
def train(
    store: "Store",
    settings: "RunConfig",
    variant: Annotated[
        Literal["genrm", "sft", "dpo"],
        Argument(help="genrm: verdicts alone. sft: reasons and verdicts. dpo: the SFT model's reasoning."),
    ],
    model: ModelUri,
    data: Annotated[str, Option(metavar="URI", help="Examples or preferences: what `reasongenrm score` printed.")],
) -> "dict[str, ArtifactRef]":
    """Train one variant; a training that was killed goes on from its last checkpoint.

    [bold]Examples[/bold]

      reasongenrm train sft --model BASE --data EXAMPLES --set sft.learning_rate=1e-4

      reasongenrm train dpo --model SFT_MODEL --data PREFERENCES
    """
    from reasongenrm.trainjob.launch import train_where_configured

    inputs = {"model": _ref(model), "preferences" if variant == "dpo" else "examples": _ref(data)}
    if variant == "dpo":
        return {"model": train_where_configured(store, settings.dpo, **inputs)}
    section = settings.genrm if variant == "genrm" else settings.sft
    return {"model": train_where_configured(store, section, variant, **inputs)}


def _ref(uri: str) -> "ArtifactRef":
    from reasongenrm.store.artifacts import open_artifact

    return open_artifact(uri).ref()
