"""A run's inputs before anything starts: data row by row, the model without its weights, the teacher's endpoint.

A dry run looks at all of them; a run and the pipeline's first task look at the data before the model is fetched.
"""

from reasongenrm.config import RunConfig
from reasongenrm.data.model_look import ModelLook, look_at_model
from reasongenrm.records import Drops, Record
from reasongenrm.store.run_records import RunInputs

DEMO_TEACHER = "demo"


class DataLook(Record):
    """What was seen of a run's data: what it was read as, in a line for people, and the counts by cause.

    The preferences' `num_out` is before `pairs.max_prompt_tokens` and `pairs.limit`, the benchmark's before
    `evaluate.limit`.
    """

    said: str
    counts: dict[str, int]


class InputsLook(Record):
    """What was seen of a run's inputs. `teacher_model` is None for a model, and for the demo's teacher."""

    preferences: DataLook
    benchmark: DataLook
    model: ModelLook
    teacher: str
    teacher_model: str | None = None


def check_inputs(inputs: RunInputs, config: RunConfig) -> InputsLook:
    """Look at all inputs of a run; nothing is started, fetched whole or written.

    Raises:
        InputError: one of them is not there, may not be had, or is not what was expected.
        EmptyStageError: no row holds a preference.
        ConfigError: a setting that does not fit the data, or an extra that is not installed.
        StoreError: the store failed.
        EngineError: the teacher's endpoint gives no list of one model.
    """
    preferences, benchmark = check_data(inputs.preferences_uri, inputs.benchmark_uri, config)
    assert preferences is not None
    assert benchmark is not None
    model = look_at_model(config.model, inputs.model_uri)
    teacher, teacher_model = _look_at_teacher(inputs, config)
    return InputsLook(
        preferences=preferences, benchmark=benchmark, model=model, teacher=teacher, teacher_model=teacher_model
    )


def check_data(
    preferences_uri: str | None, benchmark_uri: str | None, config: RunConfig
) -> tuple[DataLook | None, DataLook | None]:
    """Read preferences and benchmark, each if it is given.

    Raises:
        InputError, EmptyStageError, ConfigError, StoreError: as `check_inputs`.
    """
    from reasongenrm.data.benchmarks import load_benchmark
    from reasongenrm.data.pairs import parse_pairs, read_rows, said_of

    preferences = benchmark = None
    if preferences_uri is not None:
        _, rows = read_rows(preferences_uri, config.pairs)
        drops = Drops()
        drops.num_out = len(parse_pairs(rows, drops, config.pairs))
        drops.require_some("prepare_pairs", f"Check {preferences_uri}.")
        preferences = DataLook(said=said_of(rows, preferences_uri, config.pairs), counts=drops.counts())
    if benchmark_uri is not None:
        found = load_benchmark(benchmark_uri, config.evaluate.limit, config.evaluate.seed, config.evaluate.columns)
        benchmark = DataLook(said=found.said, counts=found.drops.counts())
    return preferences, benchmark


def _look_at_teacher(inputs: RunInputs, config: RunConfig) -> tuple[str, str | None]:
    """What the teacher is, in a line for people, and the model that its endpoint is asked for."""
    from reasongenrm.generation import is_endpoint
    from reasongenrm.generation.endpoint import EndpointEngine

    uri = inputs.teacher_uri
    if uri == DEMO_TEACHER:
        return "the demo's teacher, a program of this run", None
    if is_endpoint(uri):
        engine = EndpointEngine(uri, config.distill.engine, model_name=config.distill.teacher_model)
        return f"{engine.model_name} at {engine.base_url}", engine.model_name
    if uri == inputs.model_uri:
        return "the model itself", None
    return f"the model {look_at_model(config.model, uri).uri}", None
