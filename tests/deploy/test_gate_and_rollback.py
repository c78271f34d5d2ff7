"""From gate to gate: the judge that is served is whom the next one must beat, also after a rollback."""

from pathlib import Path

import pytest

from reasongenrm.config import GateConfig
from reasongenrm.deploy.deploy import deploy_kserve
from reasongenrm.deploy.rollback import choose, roll_back
from reasongenrm.errors import InputError
from reasongenrm.evaluation.gate import select_winner
from reasongenrm.records import JudgePrompt, Verdict
from reasongenrm.store.artifacts import ArtifactRef
from tests.deploy.kserve import NAMESPACE
from tests.deploy.test_deploy import CONFIG, World, world
from tests.evaluation.test_gate import evaluation_of
from tests.judges import Judge, always_a, benchmark_of, contrarian, oracle

__all__ = ["world"]

GATE = GateConfig(candidates=("sft",), min_accuracy_low=0.0, min_consistent_fraction=0.0)


def half(prompt: JudgePrompt, vote: int) -> Verdict:
    """Right on every second row, and [[A]] on the others."""
    return (oracle if prompt.pair_id[-1] in "02468" else always_a)(prompt, vote)


def test_gate_holds_a_candidate_against_the_judge_that_the_cluster_serves(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    benchmark = benchmark_of(folder, {"sums": 12})

    def run(how: str, judge: Judge) -> tuple[bool, ArtifactRef]:
        """A run from the evaluations on: whether the gate let its judge pass, and the decision."""
        model = world.model(how)
        evaluations = {
            "base": evaluation_of(world.store, "base", benchmark, contrarian),
            "sft": evaluation_of(world.store, "sft", benchmark, judge, model),
        }
        decision = select_winner(world.store, GATE, evaluations, {}, CONFIG)
        if decision.metrics["passed"]:
            deploy_kserve(world.store, CONFIG, decision, {"sft": model})
        return bool(decision.metrics["passed"]), decision

    assert run("weak", half)[0]  # beats the base model, and nobody is served yet
    assert world.served() == "weak"
    assert run("strong", oracle)[0]  # beats the weak one
    assert world.served() == "strong"
    passed, decision = run("weaker", half)
    assert not passed
    with pytest.raises(InputError, match="the gate did not pass"):
        deploy_kserve(world.store, CONFIG, decision, {"sft": world.model("weaker")})
    assert world.served() == "strong"

    roll_back(world.cluster, world.store, CONFIG, choose(world.cluster, world.store, NAMESPACE, "judge", None))
    assert world.served() == "weak"
    assert run("strong-again", oracle)[0]  # whom it must beat is the weak one again
    assert world.served() == "strong-again"
