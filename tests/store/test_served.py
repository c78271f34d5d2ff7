import pytest

from reasongenrm.errors import StoreError
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.served import ServedJudge, record_served, served_history, served_judge


def artifact(stage: str, digit: str) -> ArtifactRef:
    return ArtifactRef(stage=stage, key=digit * 16, digest="sha256:" + digit * 64, uri=f"s3://b/{stage}/{digit}")


def judge(digit: str, since: str) -> ServedJudge:
    return ServedJudge(
        namespace="reasongenrm",
        name="judge",
        variant="sft",
        model=artifact("train_sft", digit),
        decision=artifact("select_winner", digit),
        evaluation=artifact("evaluate_rewardbench", digit),
        revision=digit * 16,
        manifests=[{"kind": "InferenceService"}],
        served_since=since,
    )


def test_last_recorded_judge_is_the_one_that_is_served_and_all_are_remembered(store: Store) -> None:
    assert served_judge(store, "reasongenrm", "judge") is None
    first, second = judge("1", "2026-11-24T10:00:00.000+00:00"), judge("2", "2026-11-24T11:00:00.000+00:00")
    record_served(store, first)
    record_served(store, second)
    assert served_judge(store, "reasongenrm", "judge") == second
    assert served_history(store, "reasongenrm", "judge") == [first, second]
    assert served_judge(store, "elsewhere", "judge") is None
    assert served_history(store, "reasongenrm", "judg") == []


def test_record_that_cannot_be_read_is_named(store: Store) -> None:
    store.put_bytes("served/reasongenrm/judge.json", b'{"schema_version": 2}')
    with pytest.raises(StoreError, match=r"served/reasongenrm/judge\.json: .*expected the record of a served judge"):
        served_judge(store, "reasongenrm", "judge")
