"""The record of a run in the store."""

import pytest

from reasongenrm.config import InputsConfig, RunConfig
from reasongenrm.errors import ConfigError, StoreError
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.run_records import RunInputs, TaskRecord, choose_inputs, end_run, list_runs, new_run, save_run

INPUTS = RunInputs(preferences_uri="/p.jsonl", benchmark_uri="/b.jsonl", model_uri="/m", teacher_uri="http://t/v1")


def task(stage: str, name: str = "", **metrics: object) -> TaskRecord:
    ref = ArtifactRef(stage=stage, key="k", digest="sha256:0", uri=f"s3://b/{stage}/{name}", metrics=dict(metrics))
    return TaskRecord(name=name or stage, seconds=1.5, reused=False, ref=ref)


def test_run_is_kept_as_it_goes_and_listed_in_the_order_of_time(store: Store) -> None:
    first = new_run(INPUTS, RunConfig()).model_copy(update={"run_id": "20260101-000000-aaaa"})
    second = first.model_copy(update={"run_id": "20260102-000000-aaaa"})
    save_run(store, second)
    save_run(store, first)
    save_run(store, end_run(second, "failed", 5, "the loss is NaN"))
    runs = list_runs(store)
    assert [(run.run_id, run.state, run.exit_code, run.error) for run in runs] == [
        ("20260101-000000-aaaa", "running", None, None),
        ("20260102-000000-aaaa", "failed", 5, "the loss is NaN"),
    ]
    assert runs[0].config["sft"]["learning_rate"] == 5e-6
    assert runs[1].ended_at


def test_outputs_are_found_by_stage_and_evaluations_by_variant() -> None:
    tasks = (
        task("evaluate_rewardbench", "one", variant="base"),
        task("evaluate_rewardbench", "two", variant="dpo"),
        task("select_winner", winner="dpo", passed=True),
    )
    run = new_run(INPUTS, RunConfig()).model_copy(update={"tasks": tasks})
    assert {variant: ref.uri for variant, ref in run.evaluations().items()} == {
        "base": "s3://b/evaluate_rewardbench/one",
        "dpo": "s3://b/evaluate_rewardbench/two",
    }
    assert run.decision == tasks[2].ref
    assert run.output("deploy_kserve") is None


def test_damaged_record_is_named(store: Store) -> None:
    store.put_bytes("runs/20260101-000000-aaaa.json", b'{"schema_version": 1}')
    with pytest.raises(
        StoreError, match=r"runs/20260101-000000-aaaa\.json: run_id: .*; expected a run record of this version"
    ):
        list_runs(store)


def test_options_go_over_the_configs_inputs_and_the_base_model_teaches_itself():
    section = InputsConfig(preferences="a/p", benchmark="a/b", model="a/m")
    inputs = choose_inputs(section, benchmark="s3://x/b.jsonl")
    assert inputs.model_dump() == {
        "preferences_uri": "a/p",
        "benchmark_uri": "s3://x/b.jsonl",
        "model_uri": "a/m",
        "teacher_uri": "a/m",
    }
    assert choose_inputs(section, teacher="a/t").teacher_uri == "a/t"


def test_an_address_with_a_password_is_no_input_of_a_run():
    section = InputsConfig(preferences="a/p", benchmark="a/b", model="a/m")
    for option in ("teacher", "benchmark"):
        with pytest.raises(
            ConfigError, match=f"the run's {option} is 'http://a/v1' with a user or a password"
        ) as caught:
            choose_inputs(section, **{option: "http://me:canary@a/v1"})
        assert "canary" not in str(caught.value)
    with pytest.raises(ConfigError, match="its port is no number"):
        choose_inputs(section, teacher="http://a:port/v1")


def test_input_that_nobody_gives_is_named_with_its_option():
    with pytest.raises(
        ConfigError,
        match=r"no preferences, model\. Give --preferences, --model, or write inputs\.preferences, inputs\.model",
    ):
        choose_inputs(InputsConfig(benchmark="a/b"))
