from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.responses import JSONResponse, Response

from reasongenrm.config import EngineConfig, EvaluateConfig
from reasongenrm.data.benchmarks import Benchmark, BenchmarkRow, load_benchmark, rows_digest
from reasongenrm.errors import ConfigError, EngineError
from reasongenrm.evaluation.evaluate import (
    evaluate_alone,
    evaluate_rewardbench,
    evaluation_counts,
    judge_benchmark,
    judge_held,
)
from reasongenrm.evaluation.metrics import Evaluation, evaluate
from reasongenrm.generation import Generation
from reasongenrm.generation.endpoint import EndpointEngine
from reasongenrm.records import Judgment, parse_records
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact, read_file
from reasongenrm.store.stage import Stage
from tests.endpoints import FakeEndpoint, completion
from tests.judges import ScriptedEngine, benchmark_of, row, write_rows
from tests.server_words import FILTERED
from tests.tiny import tiny_checkpoint

Said = tuple[str | None, str, Literal["stop", "length"]]


def right(request_id: str, sample: int) -> Said:  # noqa: ARG001
    return "One adds up.", "[[A]]" if ":chosen_first" in request_id else "[[B]]", "stop"


def benchmark(folder: Path, num_rows: int = 5) -> Benchmark:
    return benchmark_of(folder, {"sums": num_rows})


def test_every_row_is_judged_in_both_orders_and_comes_back_in_file_order(tmp_path: Path) -> None:
    rows = benchmark(tmp_path).rows
    judgments = judge_benchmark(ScriptedEngine(right), rows, EvaluateConfig(), "reason")
    assert [(j.row_id, j.order) for j in judgments] == [
        (row.row_id, order) for row in rows for order in ("chosen_first", "rejected_first")
    ]
    assert all(j.verdict == j.label and j.reason == "One adds up." for j in judgments)
    assert (judgments[0].num_prompt_tokens, judgments[0].num_output_tokens, judgments[0].seconds) == (100, 10, 0.5)


@pytest.mark.parametrize(("style", "role"), [("plain", None), ("verdict", "assistant"), ("reason", "reason")])
def test_style_chooses_the_opening_turn(
    tmp_path: Path, style: Literal["plain", "verdict", "reason"], role: str | None
) -> None:
    engine = ScriptedEngine(right)
    judge_benchmark(engine, benchmark(tmp_path, 1).rows, EvaluateConfig(), style)
    assert {request.opening_role for request in engine.asked} == {role}
    assert {request.stop_at for request in engine.asked} == {"sequence"}
    asks_to_explain = ["explain" in request.messages[-1]["content"] for request in engine.asked]
    assert asks_to_explain == [style == "plain"] * 2


def talks(request_id: str, sample: int) -> Said:
    """Writes on without a verdict; held to one, it is right in three rows of four."""
    if not request_id.endswith(":held"):
        return None, "Both have their merits.", "length"
    letter = right(request_id, sample)[1][2]
    return None, {"A": "B", "B": "A"}[letter] if "/3:" in request_id else letter, "length"


def test_judge_in_plain_chat_is_also_held_to_a_verdict(tmp_path: Path) -> None:
    rows = benchmark(tmp_path, 4)
    engine = ScriptedEngine(talks)
    evaluation, judgments = evaluate_alone(
        engine, EvaluateConfig(), rows, "plain", name="base", model="m", folder=tmp_path
    )
    assert (evaluation.accuracy, evaluation.unparsed_fraction) == (0.5, 1.0)
    assert evaluation.held
    assert evaluation.held.accuracy == 0.75
    assert evaluation.held.interval.low < 0.75 < evaluation.held.interval.high
    assert len(judgments) == 8  # the held ones are figures, not judgments of the report
    held = engine.asked[8:]
    assert {request.answer_start for request in held} == {"[["}
    assert not any("explain" in request.messages[-1]["content"] for request in held)
    assert engine.samplings[-1].letters_alone


def test_trained_judge_and_endpoint_are_not_held(tmp_path: Path) -> None:
    rows = benchmark(tmp_path, 2)
    for style, holds_letters in (("reason", True), ("plain", False)):
        engine = ScriptedEngine(right)
        engine.holds_letters = holds_letters
        folder = tmp_path / style
        evaluation, _ = evaluate_alone(engine, EvaluateConfig(), rows, style, name="j", model="m", folder=folder)  # type: ignore[arg-type]
        assert evaluation.held is None
        assert len(engine.asked) == 4


def test_held_judgments_resume_where_they_stopped(tmp_path: Path) -> None:
    rows = benchmark(tmp_path, 4).rows
    parts: dict[str, bytes] = {}
    with pytest.raises(EngineError, match="died"):
        judge_held(ScriptedEngine(talks, dies_after=1), rows, "plain", keep_part=parts.__setitem__)
    assert len(parts) == 1
    engine = ScriptedEngine(talks)
    assert [one.answer for one in judge_held(engine, rows, "plain", parts=parts)].count("[[A]]") == 4
    assert len(engine.asked) == 4


@pytest.mark.parametrize(("style", "asks"), [("plain", False), ("verdict", True), ("reason", True)])
def test_probabilities_are_asked_of_judges_and_not_of_anybodys_api(
    tmp_path: Path, style: Literal["plain", "verdict", "reason"], asks: bool
) -> None:
    engine = ScriptedEngine(right)
    judge_benchmark(engine, benchmark(tmp_path, 1).rows, EvaluateConfig(), style)
    assert [sampling.verdict_logprobs for sampling in engine.samplings] == [asks]
    engine = ScriptedEngine(right)
    judge_benchmark(engine, benchmark(tmp_path, 1).rows, EvaluateConfig(two_step=True), "reason")
    assert [sampling.verdict_logprobs for sampling in engine.samplings] == [False, True]


def test_probability_of_a_is_kept_in_the_terms_of_its_own_prompt(tmp_path: Path) -> None:
    class Sure(ScriptedEngine):
        """Gives [[A]] three quarters of the two verdicts' probability, whatever is asked."""

        def generate(self, *args: Any, **kwargs: Any) -> Iterator[list[Generation]]:
            for batch in super().generate(*args, **kwargs):
                yield [replace(g, p_a=0.75) for g in batch]

    judgments = judge_benchmark(Sure(right), benchmark(tmp_path, 1).rows, EvaluateConfig(), "reason")
    assert [judgment.p_a for judgment in judgments] == pytest.approx([0.75, 0.75])
    plain = judge_benchmark(ScriptedEngine(right), benchmark(tmp_path, 1).rows, EvaluateConfig(), "reason")
    assert {judgment.p_a for judgment in plain} == {None}


def test_judgments_of_before_probabilities_are_still_read() -> None:
    line = (
        '{"row_id":"r","subset":"s","order":"chosen_first","vote":0,"label":"[[A]]","verdict":"[[A]]","reason":null,'
        '"answer":"[[A]]","num_prompt_tokens":1,"num_output_tokens":1,"truncated":false,"seconds":1.0}\n'
    )
    (judgment,) = parse_records(line.encode(), Judgment, "judgments.jsonl")
    assert judgment.p_a is None


def test_one_vote_is_greedy_and_several_are_sampled(tmp_path: Path) -> None:
    rows = benchmark(tmp_path, 1).rows
    engine = ScriptedEngine(right)
    judge_benchmark(engine, rows, EvaluateConfig(), "reason")
    judgments = judge_benchmark(engine, rows, EvaluateConfig(votes=3, vote_temperature=0.7, seed=5), "reason")
    greedy, sampled = engine.samplings
    assert (greedy.temperature, greedy.num_samples) == (0, 1)
    assert (sampled.temperature, sampled.num_samples, sampled.seed) == (0.7, 3, 5)
    assert [j.vote for j in judgments] == [0, 1, 2, 0, 1, 2]


def test_verdict_is_read_from_the_answer_never_from_the_reason(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda _id, _sample: ("At first [[A]], then [[B]].", "I cannot say.", "stop"))
    (first, _) = judge_benchmark(engine, benchmark(tmp_path, 1).rows, EvaluateConfig(), "reason")
    assert first.verdict is None


def test_generation_that_was_cut_off_is_marked(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda _id, _sample: ("It goes on and on", "", "length"))
    judgments = judge_benchmark(engine, benchmark(tmp_path, 1).rows, EvaluateConfig(), "reason")
    assert [(j.truncated, j.verdict) for j in judgments] == [(True, None), (True, None)]


def two_steps(request_id: str, sample: int) -> Said:
    """Reason in the first request, the verdict in the second, whose id ends with the vote."""
    if request_id.endswith("_first"):
        return f"Reason {sample}.", "", "stop"
    return None, "[[A]]", "stop"


def test_what_an_endpoint_refused_has_no_verdict_and_is_counted(tmp_path: Path) -> None:
    status, body = FILTERED["azure"]

    def reply(asked: dict[str, Any], _: int) -> Response:
        is_filtered = "What is 3 + 1?" in asked["messages"][-1]["content"]
        return JSONResponse(body, status) if is_filtered else completion("[[A]]")

    rows = benchmark(tmp_path, 10)
    with FakeEndpoint(reply).running() as url:
        engine = EndpointEngine(url, EngineConfig())
        found, judgments = evaluate_alone(
            engine, EvaluateConfig(), rows, "verdict", name="m", model="m", folder=tmp_path
        )
    assert [(j.row_id, j.refused, j.verdict) for j in judgments if j.refused] == [(rows.rows[3].row_id, True, None)] * 2
    counts = evaluation_counts(found)
    assert (counts["num_unparsed"], counts["num_truncated"], counts["num_refused"]) == (2, 0, 2)


def test_two_step_asks_for_the_reason_and_then_for_the_verdict_after_it(tmp_path: Path) -> None:
    engine = ScriptedEngine(two_steps)
    config = EvaluateConfig(two_step=True, votes=2)
    judgments = judge_benchmark(engine, benchmark(tmp_path, 1).rows, config, "reason")
    first, second = engine.asked[:2], engine.asked[2:]
    assert [(r.opening_role, r.stop_at) for r in first] == [("reason", "turn")] * 2
    assert [(r.opening_role, r.stop_at) for r in second] == [("assistant", "sequence")] * 4
    assert [r.messages[-1] for r in second] == [{"role": "reason", "content": f"Reason {n}."} for n in (0, 1, 0, 1)]
    assert [(j.order, j.vote, j.reason, j.verdict) for j in judgments] == [
        ("chosen_first", 0, "Reason 0.", "[[A]]"),
        ("chosen_first", 1, "Reason 1.", "[[A]]"),
        ("rejected_first", 0, "Reason 0.", "[[A]]"),
        ("rejected_first", 1, "Reason 1.", "[[A]]"),
    ]
    assert {(j.num_prompt_tokens, j.num_output_tokens, j.seconds) for j in judgments} == {(200, 20, 1.0)}


def test_two_step_is_for_judges_with_reasons_only(tmp_path: Path) -> None:
    engine = ScriptedEngine(right)
    judge_benchmark(engine, benchmark(tmp_path, 1).rows, EvaluateConfig(two_step=True), "verdict")
    assert len(engine.samplings) == 1


@pytest.mark.parametrize("config", [EvaluateConfig(), EvaluateConfig(votes=2), EvaluateConfig(two_step=True, votes=2)])
@pytest.mark.parametrize("dies_after", [1, 2, 3, 4])
def test_killed_judging_goes_on_where_it_stopped_and_ends_the_same(
    tmp_path: Path, config: EvaluateConfig, dies_after: int
) -> None:
    def say(request_id: str, sample: int) -> Said:
        return f"{request_id} {sample}", "[[A]]" if len(request_id) % 2 else "none", "stop"

    rows = benchmark(tmp_path, 9).rows
    undisturbed = ScriptedEngine(say)
    expected = judge_benchmark(undisturbed, rows, config, "reason")
    parts: dict[str, bytes] = {}
    dying = ScriptedEngine(say, dies_after=dies_after)
    with pytest.raises(EngineError):
        judge_benchmark(dying, rows, config, "reason", parts=parts, keep_part=parts.__setitem__)
    assert len(parts) == dies_after
    again = ScriptedEngine(say)
    assert judge_benchmark(again, rows, config, "reason", parts=dict(parts), keep_part=parts.__setitem__) == expected
    assert len(dying.asked) + len(again.asked) == len(undisturbed.asked)
    assert judge_benchmark(ScriptedEngine(say, dies_after=0), rows, config, "reason", parts=parts) == expected


def test_long_prompts_come_first(tmp_path: Path) -> None:
    engine = ScriptedEngine(right)
    short, middle, long = benchmark(tmp_path, 3).rows
    longer = [short, middle.model_copy(update={"chosen": "x" * 50}), long.model_copy(update={"chosen": "x" * 99})]
    judge_benchmark(engine, longer, EvaluateConfig(), "reason")
    assert [r.request_id.split(":")[0] for r in engine.asked] == ["sums/2"] * 2 + ["sums/1"] * 2 + ["sums/0"] * 2


def import_tiny(store: Store, folder: Path) -> ArtifactRef:
    """A tiny checkpoint with our chat template, as the training stages leave it."""
    config = EvaluateConfig()  # any section does: only the artifact is of interest here
    with Stage(store, "train_sft", config, {"examples": "sha256:0"}, {"variant": "sft"}) as stage:
        stage.add_folder(tiny_checkpoint(folder / "model", "chatml", opening_role="reason"))
        return stage.finish({"num_in": 1, "num_out": 1})


@pytest.mark.parametrize("two_step", [False, True])
def test_stage_evaluates_a_real_tiny_model_and_is_reused(store: Store, tmp_path: Path, two_step: bool) -> None:
    config = EvaluateConfig(
        max_tokens=6,
        limit=3,
        two_step=two_step,
        engine=EngineConfig(kind="transformers", batch_size=4),
    )
    model = import_tiny(store, tmp_path)
    uri = benchmark_of(tmp_path, {"hep-go": 4, "donotanswer": 2}).uri
    ref = evaluate_rewardbench(store, config, "sft", model, uri)
    evaluation = Evaluation.model_validate_json(read_file(ref, "evaluation.json"))
    judgments = parse_records(read_file(ref, "judgments.jsonl"), Judgment, "judgments.jsonl")
    rows = parse_records(read_file(ref, "rows.jsonl"), BenchmarkRow, "rows.jsonl")
    assert (evaluation.variant, evaluation.style, evaluation.two_step, evaluation.model) == (
        "sft",
        "reason",
        two_step,
        model.uri,
    )
    assert (len(rows), len(judgments), ref.counts["num_in"], ref.counts["num_out"]) == (3, 6, 3, 6)
    assert evaluation.benchmark.rows_digest == rows_digest(rows)
    assert ref.metrics["variant"] == "sft"
    assert ref.metrics["accuracy"] == evaluation.accuracy
    assert ref.metrics["is_partial_benchmark"]
    assert open_artifact(ref).input_uris == {"model": model.uri}
    assert evaluate_rewardbench(store, config, "sft", model, uri) == ref
    assert evaluate_rewardbench(store, config, "genrm", model, uri) != ref


def test_unknown_variant_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="variant is 'rlhf', expected one of base, genrm, sft, dpo"):
        evaluate_rewardbench(store, EvaluateConfig(), "rlhf", "http://127.0.0.1:1/v1", benchmark(tmp_path).uri)


def test_rows_that_hold_no_preference_are_in_the_counts_and_the_notes(tmp_path: Path) -> None:
    rows = load_benchmark(
        write_rows(tmp_path / "b.jsonl", [row("sums", 0), row("sums", 1), row("sums", 2, rejected="2 + 1 = 3.")])
    )
    judgments = judge_benchmark(ScriptedEngine(right), rows.rows, EvaluateConfig(), "verdict")
    found = evaluate(judgments, rows, EvaluateConfig(), variant="sft", model="m", style="verdict")
    assert evaluation_counts(found) == {
        "num_in": 2,
        "num_out": 4,
        "num_unparsed": 0,
        "num_truncated": 0,
        "num_dropped_equal_answers": 1,
    }
    assert "Rows of b.jsonl that hold no preference were left out: 1 equal_answers." in found.notes


def test_judge_outside_a_run_leaves_its_files_and_goes_on_after_a_crash(tmp_path: Path) -> None:
    rows = benchmark(tmp_path, 6)
    config = EvaluateConfig()
    folder = tmp_path / "out"

    def alone(engine: ScriptedEngine, model: str = "http://judge/v1") -> tuple[Evaluation, list[Judgment]]:
        return evaluate_alone(engine, config, rows, "verdict", name="mine", model=model, folder=folder)

    with pytest.raises(EngineError):
        alone(ScriptedEngine(right, dies_after=2))
    with pytest.raises(ConfigError, match=r"parts: holds parts of another evaluation .*Give another folder"):
        alone(ScriptedEngine(right), model="http://other/v1")
    engine = ScriptedEngine(right)
    evaluation, judgments = alone(engine)
    assert len(engine.asked) == 12 - 8
    assert (evaluation.variant, evaluation.accuracy) == ("mine", 1)
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "judgments.jsonl", "rows.jsonl"]
    assert parse_records((folder / "judgments.jsonl").read_bytes(), Judgment, "") == judgments
    assert load_benchmark(rows.uri).rows == tuple(parse_records((folder / "rows.jsonl").read_bytes(), BenchmarkRow, ""))
