"""What is seen of a run's inputs before it starts."""

from pathlib import Path

import pytest

from reasongenrm.config import RunConfig, parse_section
from reasongenrm.errors import EmptyStageError, EngineError, InputError
from reasongenrm.runs.input_checks import DataLook, check_data, check_inputs
from reasongenrm.store.run_records import RunInputs
from tests.endpoints import FakeEndpoint, completion, serving
from tests.judges import row, write_rows
from tests.tiny import tiny_checkpoint


@pytest.fixture
def inputs(tmp_path: Path) -> RunInputs:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nQ,good,bad\nQ,same,same\n")
    model = str(tiny_checkpoint(tmp_path / "model", "chatml"))
    rows = write_rows(tmp_path / "rows.jsonl", [row("own", 1), row("own", 2, rejected="2 + 1 = 3.")])
    return RunInputs(
        preferences_uri=str(tmp_path / "pairs.csv"), benchmark_uri=rows, model_uri=model, teacher_uri=model
    )


def test_data_are_counted_by_cause(inputs: RunInputs) -> None:
    preferences, benchmark = check_data(inputs.preferences_uri, inputs.benchmark_uri, RunConfig())
    assert preferences == DataLook(
        said=f"{inputs.preferences_uri}: 2 rows, read as TRL's explicit prompt",
        counts={"num_in": 2, "num_out": 1, "num_dropped_equal_answers": 1},
    )
    assert benchmark is not None
    assert benchmark.counts == {"num_in": 2, "num_out": 1, "num_dropped_equal_answers": 1}


def test_users_names_of_columns_hold_for_both(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("question,chosen,rejected\nQ,good,bad\n")
    names = {"columns": {"prompt": "question"}}
    config = parse_section(RunConfig, {"pairs": names, "evaluate": names}, "test")
    looks = check_data(str(tmp_path / "pairs.csv"), str(tmp_path / "pairs.csv"), config)
    assert [look and look.counts for look in looks] == [{"num_in": 1, "num_out": 1}] * 2


def test_preferences_without_a_pair_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nQ,same,same\n")
    with pytest.raises(EmptyStageError, match="none of 1 records is left: 1 equal_answers"):
        check_data(str(tmp_path / "pairs.csv"), None, RunConfig())


def test_all_inputs_are_seen_and_nothing_is_written(inputs: RunInputs, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    seen = check_inputs(inputs, RunConfig())
    assert (seen.model.chat_family, seen.teacher, seen.teacher_model) == ("chatml", "the model itself", None)
    assert sorted(tmp_path.rglob("*")) == before


def test_teachers_endpoint_is_asked_for_its_model(inputs: RunInputs) -> None:
    teacher = FakeEndpoint(lambda _body, _call: completion("unused"))
    with serving(teacher.app) as address:
        seen = check_inputs(inputs.model_copy(update={"teacher_uri": f"{address}/v1"}), RunConfig())
        assert (seen.teacher, seen.teacher_model) == (f"fake at {address}/v1", "fake")
    assert teacher.bodies == []  # nothing was generated


def test_teacher_that_is_not_there_is_an_engine_error(inputs: RunInputs) -> None:
    config = parse_section(RunConfig, {"distill": {"engine": {"max_retries": 0}}}, "test")
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
        check_inputs(inputs.model_copy(update={"teacher_uri": "http://127.0.0.1:9/v1"}), config)


def test_model_that_is_not_there_is_named(inputs: RunInputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing-here: no such folder"):
        check_inputs(inputs.model_copy(update={"model_uri": str(tmp_path / "nothing-here")}), RunConfig())
