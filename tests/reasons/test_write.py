"""What is kept of the reasons that were written, and the two stages: a teacher behind HTTP, a tiny model in the
process."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from reasongenrm.config import DistillConfig, EngineConfig, SampleConfig, Section
from reasongenrm.data.rows import take
from reasongenrm.errors import ConfigError, EmptyStageError, EngineError
from reasongenrm.reasons.write import (
    clean_reasons,
    distill_reasons,
    sample_reasons,
    tells_that_it_was_told,
    without_verdict_line,
)
from reasongenrm.records import FinishReason, JudgePrompt, Message, Reason, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, Store, read_file
from reasongenrm.store.stage import Stage
from tests.endpoints import FakeEndpoint, completion
from tests.server_words import FILTERED
from tests.tiny import tiny_checkpoint


def judge_prompts(num: int) -> list[JudgePrompt]:
    return [
        JudgePrompt(
            prompt_id=f"p{number}",
            pair_id=f"p{number}",
            question=(Message(role="user", content=f"What is {number} + 1?"),),
            answer_a=f"{number + 1}",
            answer_b=f"{number + 3}",
            label="[[A]]" if number % 2 else "[[B]]",
        )
        for number in range(num)
    ]


def reason(text: str, sample: int = 0, prompt_id: str = "p0", finish: FinishReason = "stop") -> Reason:
    return Reason(prompt_id=prompt_id, sample=sample, reason=text, model="m", num_tokens=5, finish_reason=finish)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A is right.\n\n[[A]]", "A is right."),
        ("A is right.\nFinal verdict: [[ B ]]  \n", "A is right."),
        ("A is right.\n\n**Verdict:**\n[[A]]", "A is right."),
        ("  A is right.\nB is not. ", "A is right.\nB is not."),
        ("A writes [[A]] itself.\nB is right.", "A writes [[A]] itself.\nB is right."),
        ("So it is [[A]].", ""),
        ("", ""),
    ],
)
def test_last_line_with_a_verdict_is_cut_off_and_nothing_else(text: str, kept: str) -> None:
    assert without_verdict_line(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "Since the given verdict is A, answer A must be better.",
        "The verdict provided says that B wins.",
        "The correct verdict given was A.",
        "The verdict is already known.",
        "As the better answer is known, I look for its merits.",
        "Answer A is known to be the better one.",
        "I was told that A is better.",
        "We have been informed that B is right.",
        "THE KNOWN CORRECT VERDICT is B.",
    ],
)
def test_reason_that_speaks_of_the_given_verdict_is_told_apart(text: str) -> None:
    assert tells_that_it_was_told(text)


@pytest.mark.parametrize(
    "text",
    [
        "Answer A gives the correct result, so the verdict is clear.",
        "We are given a triangle; answer B uses it.",
        "Answer A is the better answer given these limits.",
        "The result is known as Euler's formula, and I know that A states it rightly.",
        "My verdict: A. The better answer is given by the first assistant.",
        "The user told the assistant to be short; B was.",
    ],
)
def test_reason_that_argues_from_the_answers_is_left_alone(text: str) -> None:
    assert not tells_that_it_was_told(text)


def test_each_cause_of_dropping_is_counted_and_the_rest_is_kept_in_order() -> None:
    written = [
        reason("  A is right and B is wrong. ", 0),
        reason("A is right and B is wrong.\n[[A]]", 1),  # the same as the first, once its last line is gone
        reason("A is right and B is wrong.", 0, "p1"),
        reason("A is right because it", 2, finish="length"),
        reason("I was told that A is right.", 3),
        reason("The text says [[B]], which is wrong.\nA is right.", 4),
        reason("A wins.", 5),
        reason("A wins: \n[[A]]", 6),
        reason("A is right, and B is not.\nVerdict: [[A]]", 7),
        reason("", 8),
    ]
    kept, drops, num_cut = clean_reasons(written, 8, told_verdict=True)
    assert [(r.prompt_id, r.sample, r.reason) for r in kept] == [
        ("p0", 0, "A is right and B is wrong."),
        ("p1", 0, "A is right and B is wrong."),
        ("p0", 7, "A is right, and B is not."),
    ]
    assert num_cut == 1
    assert drops.counts() == {
        "num_in": 10,
        "num_out": 3,
        "num_dropped_cut_off": 1,
        "num_dropped_duplicate": 1,
        "num_dropped_tells_that_it_was_told": 1,
        "num_dropped_too_short": 3,
        "num_dropped_verdict_mark": 1,
    }


@pytest.mark.parametrize(
    ("text", "answer", "whole"),
    [
        ("<think>\nHm, 7 is prime.\n</think>\n\nA is right.", "A is right.", "Hm, 7 is prime.\n\nA is right."),  # Qwen3
        ("Hm, 7 is prime.\n</think>\n\nA is right.", "A is right.", "Hm, 7 is prime.\n\nA is right."),  # DeepSeek-R1
        ("<think>\n\n</think>\n\nA is right.", "A is right.", "A is right."),  # Qwen3, told not to think
        ("<think>a</think> no. <think>b</think> A is right.", "A is right.", "a no. b\n\nA is right."),
        ("A is right.", "A is right.", "A is right."),
        ("<think>\nHm, 7 is", None, None),
        ("<think>a</think> no. <think>b", None, None),
    ],
)
def test_thoughts_are_no_reason_unless_they_are_kept(text: str, answer: str | None, whole: str | None) -> None:
    for keep, wanted in ((False, answer), (True, whole)):
        kept, drops, _ = clean_reasons([reason(text)], 4, told_verdict=True, keep_thoughts=keep)
        assert [one.reason for one in kept] == ([] if wanted is None else [wanted])
        assert drops.causes == ({"unclosed_thoughts": 1} if wanted is None else {})


def test_what_the_server_refused_has_a_cause_of_its_own() -> None:
    written = [reason("", finish="refused"), reason("", 1, finish="length"), reason("<think>Hm", 2, finish="length")]
    _, drops, _ = clean_reasons(written, 8, told_verdict=True)
    assert drops.causes == {"refused": 1, "cut_off": 2}


def test_reason_of_exactly_the_least_length_is_kept() -> None:
    assert [
        r.reason for r in clean_reasons([reason(" 12345678 "), reason("1234567", 1)], 8, told_verdict=False)[0]
    ] == ["12345678"]


def test_policy_reason_is_taken_as_it_is_or_not_at_all() -> None:
    written = [reason("A is right and B is wrong.\n[[A]]", 0), reason("I was told by the user that B is it.", 1)]
    kept, drops, num_cut = clean_reasons(written, 8, told_verdict=False)
    assert [r.sample for r in kept] == [1]
    assert (drops.causes, num_cut) == ({"verdict_mark": 1}, 0)


class Teacher:
    """An OpenAI-compatible endpoint that says what a function makes of the prompt and the seed."""

    def __init__(self, says: Callable[[str, int], str]) -> None:
        self.says = says
        self.prompts: list[str] = []
        self.fails_after: int | None = None
        self.address = ""

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.fails_after is not None and len(self.prompts) >= self.fails_after:
            return 401, {"error": {"message": "the teacher is tired"}}
        prompt = body["messages"][-1]["content"]
        self.prompts.append(prompt)
        message = {"role": "assistant", "content": self.says(prompt, body["seed"])}
        usage = {"prompt_tokens": 50, "completion_tokens": 12}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


@contextmanager
def serve(teacher: Teacher) -> Iterator[Teacher]:
    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: int, data: dict[str, Any]) -> None:
            payload = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "the-teacher"}]})

        def do_POST(self) -> None:
            with contextlib.suppress(BrokenPipeError):  # the engine leaves what it has asked for when one request fails
                self._send(*teacher.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    teacher.address = f"http://127.0.0.1:{server.server_port}/v1"
    yield teacher
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    def says(prompt: str, seed: int) -> str:
        question = prompt.split("What is ")[1].split("?")[0]
        return f"{question}: I have counted it {seed} times, and one answer is right.\n[[A]]"

    with serve(Teacher(says)) as running:
        yield running


class Raw(Section):
    """Config of a stage that only publishes test data."""


def publish(store: Store, name: str, data: bytes | Path) -> ArtifactRef:
    with Stage(store, f"make_{name}", Raw(), {}) as stage:
        if isinstance(data, Path):
            stage.add_folder(data)
        else:
            stage.add_bytes(f"{name}.jsonl", data)
        return stage.finish({"num_in": 1, "num_out": 1})


def distill_config(**changes: Any) -> DistillConfig:
    engine = EngineConfig(kind="transformers", batch_size=4, concurrency=1, max_retries=0)
    return DistillConfig(num_samples=2, max_tokens=64, engine=engine, **changes)


def read(ref: ArtifactRef) -> list[Reason]:
    return parse_records(read_file(ref, "reasons.jsonl"), Reason, "reasons.jsonl")


def test_teacher_is_told_the_label_and_its_reasons_come_cleaned_in_order(store: Store, teacher: Teacher) -> None:
    prompts = publish(store, "prompts", dump_records(judge_prompts(5)))
    ref = distill_reasons(store, distill_config(), prompts, teacher.address)
    reasons = read(ref)
    assert [(r.prompt_id, r.sample) for r in reasons] == [(f"p{n}", sample) for n in range(5) for sample in range(2)]
    assert all(r.reason.startswith(f"{r.prompt_id[1]} + 1: I have") and r.reason.endswith("is right.") for r in reasons)
    assert {(r.model, r.num_tokens) for r in reasons} == {("the-teacher", 12)}
    assert ref.counts == {
        "num_in": 10,
        "num_out": 10,
        "num_prompts": 5,
        "num_prompts_without_reason": 0,
        "num_verdict_lines_cut": 10,
    }
    assert ref.metrics["tokens_mean"] == 12
    for prompt in judge_prompts(5):
        asked = [text for text in teacher.prompts if prompt.question[0].content in text]
        assert len(asked) == 2
        assert all(f"it is answer {prompt.label[2]}." in text for text in asked)
    assert distill_reasons(store, distill_config(), prompts, teacher.address) == ref
    assert len(teacher.prompts) == 10, "a finished stage asks nothing"


def test_interrupted_distillation_asks_only_for_what_is_missing_and_ends_with_the_same_bytes(
    store: Store, teacher: Teacher
) -> None:
    prompts = publish(store, "prompts", dump_records(judge_prompts(7)))
    undisturbed = distill_reasons(Store(f"{store.uri}/undisturbed"), distill_config(), prompts, teacher.address)
    teacher.prompts.clear()
    teacher.fails_after = 9  # two batches of two prompts with two samples, and one request of the third
    with pytest.raises(EngineError, match="the teacher is tired"):
        distill_reasons(store, distill_config(), prompts, teacher.address)
    teacher.prompts.clear()
    teacher.fails_after = None
    ref = distill_reasons(store, distill_config(), prompts, teacher.address)
    assert {text.split("What is ")[1][0] for text in teacher.prompts} == {"4", "5", "6"}
    assert (ref.digest, ref.counts) == (undisturbed.digest, undisturbed.counts)
    assert not [name for name in store.list("distill_reasons/") if "/parts/" in name]


def test_thoughts_that_the_server_split_off_are_kept_where_they_are_wanted(store: Store) -> None:
    def split(*_: Any) -> Any:
        return completion("A is right, B is not.", reasoning_content="7 is prime, 9 is not.")

    prompts = publish(store, "prompts", dump_records(judge_prompts(1)))
    with FakeEndpoint(split).running() as url:
        plain, kept = (
            distill_reasons(store, distill_config(keep_thoughts=keep), prompts, url) for keep in (False, True)
        )
    assert [r.reason for r in read(plain)] == ["A is right, B is not."]  # two equal samples: one is dropped
    assert [r.reason for r in read(kept)] == ["7 is prime, 9 is not.\n\nA is right, B is not."]
    assert plain.key != kept.key


def test_one_filtered_row_in_ten_does_not_end_the_stage_and_is_counted(store: Store) -> None:
    status, body = FILTERED["azure"]

    def reply(asked: dict[str, Any], _: int) -> Any:
        text = asked["messages"][-1]["content"]
        if "What is 3 + 1?" in text:
            return JSONResponse(body, status)
        return completion(f"I have counted {asked['seed']} and one answer is right.")

    prompts = publish(store, "prompts", dump_records(judge_prompts(10)))
    with FakeEndpoint(reply).running() as url:
        ref = distill_reasons(store, distill_config(), prompts, url)
    assert (ref.counts["num_in"], ref.counts["num_out"], ref.counts["num_dropped_refused"]) == (20, 18, 2)
    assert ref.counts["num_prompts_without_reason"] == 1


def test_a_password_in_the_teachers_address_is_used_and_lands_nowhere(
    store: Store, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = FakeEndpoint(lambda asked, _: completion(f"I have counted {asked['seed']} and one answer is right."))
    prompts = publish(store, "prompts", dump_records(judge_prompts(2)))
    with fake.running() as url, caplog.at_level(logging.DEBUG):
        address = url.replace("http://", "http://me:canary@")
        ref = distill_reasons(store, distill_config(), prompts, address)
        assert distill_reasons(store, distill_config(), prompts, url) == ref, "the password is no part of the key"
        status, body = FILTERED["azure"]
        fake.reply = lambda *_: JSONResponse(body, status)
        with pytest.raises(EngineError, match="4 of 4 requests failed") as caught:
            distill_reasons(Store(f"{store.uri}/other"), distill_config(), prompts, address)
    assert fake.headers[0]["authorization"].startswith("Basic ")
    written = b"".join(store.get_bytes(name) for name in store.list(""))
    assert b"the verdict" in written or b"counted" in written
    shown = capfd.readouterr()
    for text in (written.decode(errors="replace"), str(caught.value), caplog.text, shown.out, shown.err):
        assert "canary" not in text


def test_named_teacher_is_the_same_at_another_address(store: Store, teacher: Teacher) -> None:
    prompts = publish(store, "prompts", dump_records(judge_prompts(2)))
    named = distill_config(teacher_model="the-teacher")
    ref = distill_reasons(store, named, prompts, teacher.address)
    assert distill_reasons(store, named, prompts, "http://127.0.0.1:9/v1") == ref
    unnamed = distill_reasons(store, distill_config(), prompts, teacher.address)
    assert unnamed.key != ref.key
    with pytest.raises(EngineError):
        distill_reasons(store, distill_config(), prompts, "http://127.0.0.1:9/v1")


def test_teacher_whose_reasons_are_all_dropped_is_an_error_with_causes(store: Store) -> None:
    prompts = publish(store, "prompts", dump_records(judge_prompts(2)))
    match = r"none of 4 records is left: 4 too_short \(first: prompt p0 sample 0: 'B\.'\).*min_reason_chars \(8\)"
    with serve(Teacher(lambda _prompt, _seed: "B.")) as teacher, pytest.raises(EmptyStageError, match=match):
        distill_reasons(store, distill_config(), prompts, teacher.address)
    assert not [name for name in store.list("distill_reasons/") if "/parts/" not in name]


def test_checkpoint_as_teacher_is_imported_and_uses_its_own_template(store: Store, tmp_path: Path) -> None:
    prompts = publish(store, "prompts", dump_records(judge_prompts(2)))
    folder = tiny_checkpoint(tmp_path / "teacher", "chatml")
    config = distill_config(temperature=9.0).model_copy(
        update={"max_tokens": 250}
    )  # hot: random weights end some turns
    ref = distill_reasons(store, config, prompts, str(folder))
    reasons = read(ref)
    assert reasons
    assert all(r.model.startswith("import_model/") and r.finish_reason == "stop" for r in reasons)
    imported = store.uri_of("/".join(store.list("import_model/")[0].split("/")[:3]))
    assert distill_reasons(store, config, prompts, imported) == ref
    with pytest.raises(ConfigError, match=r"distill\.teacher_model is 'x', which only an endpoint is asked for"):
        distill_reasons(store, distill_config(teacher_model="x"), prompts, str(folder))


def test_policy_writes_reasons_of_a_limited_number_of_prompts_without_the_verdict(store: Store, tmp_path: Path) -> None:
    prompts = publish(store, "prompts", dump_records(judge_prompts(9)))
    model = publish(store, "model", tiny_checkpoint(tmp_path / "sft", "qwen2.5", opening_role="reason"))
    config = SampleConfig(
        num_samples=4, temperature=9.0, max_tokens=250, limit=3, engine=EngineConfig(kind="transformers", batch_size=12)
    )
    ref = sample_reasons(store, config, model, prompts)
    reasons = read(ref)
    wanted = [prompt.prompt_id for prompt in take(judge_prompts(9), 3, config.seed)]
    assert ref.counts["num_in"] == 12
    assert ref.counts["num_out"] == len(reasons) > 0
    assert {r.prompt_id for r in reasons} <= set(wanted)
    assert [r.prompt_id for r in reasons] == sorted((r.prompt_id for r in reasons), key=wanted.index)
    assert {r.model for r in reasons} == {f"make_model/{model.key}"}
    assert sample_reasons(store, config, model, prompts) == ref
