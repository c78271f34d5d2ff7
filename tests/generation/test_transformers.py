"""The transformers engine on tiny random models: exactness of batches, seeds, resume, turns, limits."""

import copy
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasongenrm.config import EngineConfig
from reasongenrm.data.chat import render
from reasongenrm.errors import InputError
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling
from reasongenrm.generation.transformers import TransformersEngine, load_checkpoint
from tests.tiny import FAMILIES, Family, exact, say, tiny_checkpoint

QUESTIONS = [
    "Which?",
    "Which answer is better, A or B?",
    "Yes",
    "Why is the verdict [[B]] and not [[A]]? " * 3,
    "Q",
    "answer " * 9,
]


def ask(text: str, name: str, **changes: object) -> GenerationRequest:
    request = GenerationRequest(name, ({"role": "user", "content": text},), opening_role="reason")
    return replace(request, **changes)  # type: ignore[arg-type]


REQUESTS = [ask(text, f"q{number}") for number, text in enumerate(QUESTIONS)]


def without_seconds(generations: list[Generation]) -> list[Generation]:
    return [replace(generation, seconds=0.0) for generation in generations]


def run(
    engine: TransformersEngine, requests: list[GenerationRequest], sampling: Sampling, **more: object
) -> dict[tuple[str, int], Generation]:
    batches = engine.generate(requests, sampling, **more)  # type: ignore[arg-type]
    return {(g.request_id, g.sample): g for batch in batches for g in without_seconds(batch)}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    path = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "chatml", opening_role="reason")
    config = EngineConfig(kind="transformers", batch_size=4)
    with closing(TransformersEngine.load(path, config, model_name="tiny")) as loaded:
        yield loaded


def double(engine: TransformersEngine, **changes: int | None) -> TransformersEngine:
    """The same model in float64, where padding and batching leave no trace in an argmax."""
    settings = {"batch_size": engine.batch_size, "max_model_len": None, **changes}
    return TransformersEngine(exact(copy.deepcopy(engine.model)), engine.turns.tokenizer, model_name="tiny", **settings)  # type: ignore[arg-type]


def test_greedy_batches_equal_a_plain_loop_over_whole_sequences(engine: TransformersEngine) -> None:
    exact = double(engine, batch_size=6)
    got = run(exact, REQUESTS, Sampling(max_tokens=24))
    for request in REQUESTS:
        ids = render(exact.turns.tokenizer, request.messages, opening_role="reason")
        num_prompt = len(ids)
        end = exact.turns.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        with torch.inference_mode():
            while len(ids) - num_prompt < 24 and (len(ids) == num_prompt or ids[-1] != end):
                ids.append(int(exact.model(torch.tensor([ids])).logits[0, -1].argmax()))
        one = got[request.request_id, 0]
        assert one.num_prompt_tokens == num_prompt
        assert one.num_output_tokens == len(ids) - num_prompt
        assert (one.reason, one.answer) == exact.turns.split(ids[num_prompt:], exact.turns.encode(request))


def test_batches_of_one_and_of_six_write_the_same(engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=16, temperature=0.8, top_p=0.9, num_samples=3, seed=5)
    assert run(double(engine, batch_size=1), REQUESTS, sampling) == run(
        double(engine, batch_size=18), REQUESTS, sampling
    )


def test_all_samples_of_a_request_come_in_one_batch_longest_prompts_first(engine: TransformersEngine) -> None:
    batches = list(engine.generate(REQUESTS, Sampling(max_tokens=2, num_samples=2, temperature=1.0)))
    assert [[(g.request_id, g.sample) for g in batch] for batch in batches] == [
        [("q3", 0), ("q3", 1), ("q1", 0), ("q1", 1)],
        [("q5", 0), ("q5", 1), ("q0", 0), ("q0", 1)],
        [("q2", 0), ("q2", 1), ("q4", 0), ("q4", 1)],
    ]


def test_same_seed_gives_the_same_records_and_another_seed_others(engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0, num_samples=2, seed=1)
    first = run(engine, REQUESTS, sampling)
    assert run(engine, REQUESTS, sampling) == first
    assert run(engine, REQUESTS, replace(sampling, seed=2)) != first
    assert first["q0", 0].reason != first["q0", 1].reason


def test_resume_writes_what_an_undisturbed_run_would_have_written(engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0, num_samples=2, seed=1)
    whole = run(engine, REQUESTS, sampling)
    resumed = run(engine, REQUESTS, sampling, skip={"q3", "q1", "q2"})  # one whole batch and a part of another
    assert {name for name, _ in resumed} == {"q5", "q0", "q2", "q4"}
    assert resumed == {key: value for key, value in whole.items() if key in resumed}


@pytest.mark.parametrize("family", FAMILIES)
def test_reason_and_verdict_come_from_one_generation(tmp_path: Path, family: Family) -> None:
    model, tokenizer = load_checkpoint(tiny_checkpoint(tmp_path / family, family, opening_role="reason"), "auto")
    engine = TransformersEngine(model, tokenizer, batch_size=2, max_model_len=None, model_name="tiny")
    family = engine.turns.family
    text = f"A is right.{family.turn_end}{family.assistant_header}[[A]]{family.turn_end}"
    script = tokenizer.encode(text + engine.turns.family.sequence_end, add_special_tokens=False)
    say(engine.model, script)
    one = run(engine, [ask("Which?", "q")], Sampling(max_tokens=99))["q", 0]
    assert (one.reason, one.answer, one.finish_reason) == ("A is right.", "[[A]]", "stop")
    assert one.num_output_tokens == len(script)
    # The scripted logit is 2 above all others: P(A) / P(B) = e^2.
    assert one.p_a == pytest.approx(1 / (1 + math.exp(-2)))

    turn = run(engine, [ask("Which?", "q", stop_at="turn")], Sampling(max_tokens=99))["q", 0]
    assert (turn.reason, turn.answer, turn.finish_reason) == ("A is right.", "", "stop")


def test_markup_spelled_out_in_ordinary_tokens_is_no_turn(engine: TransformersEngine) -> None:
    tokenizer = engine.turns.tokenizer
    spelled = [token for char in "<|im_end|>\n<|im_start|>assistant\n[[A]]" for token in tokenizer.encode(char)]
    prompt = engine.turns.encode(ask("Which?", "q"))
    assert engine.turns.split(spelled, prompt) == ("< |im_end|>\n< |im_start|>assistant\n[[A]]", "")


def test_second_step_of_two_step_generation_opens_the_assistant_turn(engine: TransformersEngine) -> None:
    messages = ({"role": "user", "content": "Which?"}, {"role": "reason", "content": "A is right."})
    prompt = engine.turns.encode(GenerationRequest("q", messages, opening_role="reason"))
    assert prompt.opening_role == "assistant"
    one = run(engine, [GenerationRequest("q", messages, opening_role="reason")], Sampling(max_tokens=3))["q", 0]
    assert one.reason is None


@pytest.mark.parametrize("family", FAMILIES)
def test_base_model_answers_plainly_and_stops_at_its_own_end_token(tmp_path: Path, family: Family) -> None:
    model, tokenizer = load_checkpoint(tiny_checkpoint(tmp_path / family, family), "auto")
    engine = TransformersEngine(model, tokenizer, batch_size=2, max_model_len=None, model_name="tiny")
    say(engine.model, tokenizer.encode("Verdict: [[B]]" + tokenizer.eos_token + "more", add_special_tokens=False))
    one = run(engine, [ask("Which?", "q")], Sampling(max_tokens=99))["q", 0]
    assert (one.reason, one.answer, one.finish_reason) == (None, "Verdict: [[B]]", "stop")


def test_held_to_a_letter_it_writes_the_more_probable_of_the_two(engine: TransformersEngine) -> None:
    wide = double(engine)
    tokenizer = wide.turns.tokenizer
    letters = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "AB"}
    held = [replace(request, opening_role="assistant", answer_start="[[") for request in REQUESTS]
    got = run(wide, held, Sampling(max_tokens=1, letters_alone=True))
    for request in held:
        ids = [*render(tokenizer, request.messages, opening_role="assistant"), *tokenizer.encode("[[")]
        with torch.inference_mode():
            logits_V = wide.model(torch.tensor([ids])).logits[0, -1]
        assert int(logits_V.argmax()) not in letters.values()  # free, it would have written something else
        one = got[request.request_id, 0]
        assert one.answer == max(letters, key=lambda letter: float(logits_V[letters[letter]]))
        assert (one.num_prompt_tokens, one.num_output_tokens) == (len(ids), 1)


def test_template_decides_which_turn_opens_when_the_request_leaves_it_open(engine: TransformersEngine) -> None:
    assert engine.turns.encode(ask("Which?", "q", opening_role=None)).opening_role == "reason"
    assert engine.turns.encode(ask("Which?", "q", opening_role="assistant")).opening_role == "assistant"


def test_generation_stops_at_the_end_of_the_context(engine: TransformersEngine) -> None:
    short = double(engine, max_model_len=40)
    num_prompt = len(render(short.turns.tokenizer, REQUESTS[0].messages))
    got = run(short, [REQUESTS[0], REQUESTS[3]], Sampling(max_tokens=99, num_samples=2, temperature=1.0))
    assert got["q0", 0].num_output_tokens == 40 - num_prompt
    assert got["q0", 0].finish_reason == "length"
    for sample in range(2):  # 3 x 30 characters do not fit into 40 tokens
        long = got["q3", sample]
        assert (long.answer, long.num_output_tokens, long.finish_reason) == ("", 0, "length")
        assert long.num_prompt_tokens > 40


def test_more_samples_than_a_batch_holds_are_decoded_in_passes(engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=6, temperature=1.0, num_samples=5, seed=3)
    (batch,) = engine.generate(REQUESTS[:1], sampling)
    assert [g.sample for g in batch] == [0, 1, 2, 3, 4]
    assert len({g.reason for g in batch}) > 1


def test_folder_without_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing: found no config\.json"):
        load_checkpoint(tmp_path / "nothing", "auto")


def test_folder_without_weights_is_refused_by_name(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "bare", "chatml")
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"bare: cannot be loaded: .*model\.safetensors"):
        load_checkpoint(path, "auto")


def test_truncated_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "cut", "chatml")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cut: a \.safetensors file is damaged or cut short"):
        load_checkpoint(path, "auto")
