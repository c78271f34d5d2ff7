"""Which rows are asked again, and how."""

from pathlib import Path

import pytest

from reasongenrm.config import DeployConfig, EvaluateConfig
from reasongenrm.deploy.golden import choose_golden
from reasongenrm.errors import InputError
from reasongenrm.evaluation.evaluate import evaluation_files
from reasongenrm.records import JudgePrompt, Verdict
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage
from tests.judges import always_a, benchmark_of, evaluated, judged


def right_on_even(prompt: JudgePrompt, vote: int) -> Verdict:  # noqa: ARG001
    """Right in both orders where the row's number is even; says [[A]] otherwise."""
    return prompt.label if int(prompt.pair_id.rsplit("/", 1)[-1]) % 2 == 0 else "[[A]]"


def evaluation(store: Store, folder: Path, judge: object = right_on_even) -> ArtifactRef:
    benchmark = benchmark_of(folder, {"sums": 6, "more": 4})
    settings = EvaluateConfig(max_tokens=77, two_step=True, votes=3)
    with Stage(store, "evaluate_rewardbench", settings, {}, {"variant": "genrm"}) as stage:
        for name, data in evaluation_files(evaluated(benchmark, judge), judged(benchmark, judge), benchmark).items():  # type: ignore[arg-type]
            stage.add_bytes(name, data)
        return stage.finish({})


def test_rows_were_right_in_both_orders_are_spread_over_the_subsets_and_always_the_same(
    store: Store, tmp_path: Path
) -> None:
    ref = evaluation(store, tmp_path)
    golden = choose_golden(
        ref, "genrm", DeployConfig(num_golden=3)
    )  # 3 of sums (0, 2, 4) and 2 of more (0, 2) are right
    assert {row.subset for row in golden.rows} == {"sums", "more"}
    assert len(golden.rows) == 3
    assert all(int(row.row_id.rsplit("/", 1)[-1]) % 2 == 0 for row in golden.rows)
    assert choose_golden(ref, "genrm", DeployConfig(num_golden=3)) == golden
    assert len(choose_golden(ref, "genrm", DeployConfig(num_golden=100)).rows) == 5


def test_rows_are_asked_as_the_evaluation_asked(store: Store, tmp_path: Path) -> None:
    golden = choose_golden(evaluation(store, tmp_path), "genrm", DeployConfig(num_golden=3))
    assert (golden.settings.max_tokens, golden.settings.two_step, golden.style) == (77, True, "verdict")


def test_judge_that_was_never_right_in_both_orders_cannot_be_checked(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="genrm judged none of 10 rows rightly in both orders"):
        choose_golden(evaluation(store, tmp_path, always_a), "genrm", DeployConfig(num_golden=3))


def test_judge_that_was_never_right_is_asked_all_the_same_where_no_agreement_is_asked_for(
    store: Store, tmp_path: Path
) -> None:
    ref = evaluation(store, tmp_path, always_a)
    assert len(choose_golden(ref, "genrm", DeployConfig(num_golden=3, min_golden_agreement=0)).rows) == 3
