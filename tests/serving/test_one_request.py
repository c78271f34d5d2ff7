"""One chat completion gives a reason and a verdict: the small server held to choices, asked by OpenAI's own client."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from reasongenrm.serving.live import LiveModel
from tests.endpoints import serving
from tests.serving.test_server import client, error_of, joined, load, stream
from tests.tiny import BY_NAME, FAMILIES, tiny_checkpoint

QUESTION: dict[str, Any] = {"model": "judge", "messages": [{"role": "user", "content": "Which?"}], "temperature": 0}
HELD = {"structured_outputs": {"choice": ["[[A]]", "[[B]]"]}}
CHATML = BY_NAME["chatml"]
CLOSED = f"{CHATML.turn_end}{CHATML.assistant_header}"
END = f"{CHATML.turn_end}{CHATML.sequence_end}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "judge", "chatml", opening_role="reason")


@pytest.fixture(scope="module")
def random(checkpoint: Path) -> Iterator[httpx.Client]:
    with client(load(checkpoint)) as opened:
        yield opened


def choice_of(opened: httpx.Client, **changes: Any) -> dict[str, Any]:
    response = opened.post("/v1/chat/completions", json=QUESTION | HELD | changes)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0] | {"usage": response.json()["usage"]}


@pytest.fixture(scope="module", params=FAMILIES)
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    path = tmp_path_factory.mktemp("tiny") / "judge"
    return load(tiny_checkpoint(path, request.param, opening_role="reason", seed=3))


def test_untrained_model_of_every_family_gives_a_verdict_within_max_tokens(untrained: LiveModel) -> None:
    with client(untrained) as opened:
        verdicts = []
        for seed in range(6):
            got = choice_of(opened, temperature=1, seed=seed, max_tokens=30)
            assert got["finish_reason"] == "stop"
            assert got["usage"]["completion_tokens"] <= 30
            assert got["message"]["reasoning_truncated"] is True
            assert got["message"]["reasoning"]
            verdicts.append(got["message"]["content"])
        assert set(verdicts) == {"[[A]]", "[[B]]"}


def test_reason_that_closes_in_time_is_the_models_own_and_only_the_content_is_held(checkpoint: Path) -> None:
    with client(load(checkpoint, f"[[C]] it is.{CLOSED}[[A]]{END}")) as opened:
        message = choice_of(opened, max_tokens=60)["message"]
    assert (message["reasoning"], message["content"]) == ("[[C]] it is.", "[[A]]")
    assert "reasoning_truncated" not in message


def test_model_that_would_not_give_a_verdict_is_held_to_one(checkpoint: Path) -> None:
    # After the reason it would open a user turn and then say "Sorry"; both are overruled.
    script = f"Hm.{CHATML.turn_end}\n{CHATML.opening('user')}Sorry, I can not say which is better."
    with client(load(checkpoint, script)) as opened:
        message = choice_of(opened, max_tokens=60)["message"]
    assert (message["reasoning"], message["content"][:2], message["content"][3:]) == ("Hm.", "[[", "]]")


def test_sequence_end_in_the_reason_does_not_end_the_answer(checkpoint: Path) -> None:
    # All tokens but the script's are equally probable, and of those the lowest id that is left closes the reason.
    with client(load(checkpoint, f"A{CHATML.sequence_end}B is right, I think.")) as opened:
        message = choice_of(opened, max_tokens=60)["message"]
    assert (message["reasoning"], message["content"]) == ("A", "[[A]]")


def test_plain_answer_is_held_from_its_first_token(checkpoint: Path) -> None:
    with client(load(checkpoint, "Sorry, I can not say which is better.")) as opened:
        got = choice_of(opened, chat_template_kwargs={"opening_role": "assistant"}, max_tokens=20)
    assert (got["message"]["reasoning"], got["message"]["content"][:2]) == (None, "[[")


def test_choice_that_begins_another_ends_with_the_turn(checkpoint: Path) -> None:
    for answer in ("A", "A and B"):
        with client(load(checkpoint, f"Hm.{CLOSED}{answer}{END}")) as opened:
            got = choice_of(opened, structured_outputs={"choice": ["A", "A and B"]}, max_tokens=60)
        assert (got["message"]["content"], got["finish_reason"]) == (answer, "stop")


def test_budget_closes_the_reason_and_the_answer_is_free(checkpoint: Path) -> None:
    # "A is" is forced shut after its first token or two; the script for the steps after the assistant header is the
    # answer.
    model = load(checkpoint)
    num_bridge = len(model.turns.tokenizer.encode(CLOSED, add_special_tokens=False))
    with client(load(checkpoint, "A" * (1 + num_bridge) + f"Both{END}")) as opened:
        got = choice_of(opened, structured_outputs=None, thinking_token_budget=1, max_tokens=60)
        assert (got["message"]["reasoning"], got["message"]["content"]) == ("A", "Both")
        assert got["message"]["reasoning_truncated"] is True
        assert got["finish_reason"] == "stop"
        assert choice_of(opened, thinking_token_budget=0, max_tokens=60)["message"]["reasoning"] == ""
    with client(load(checkpoint, f"A is right.{CLOSED}[[A]]{END}")) as opened:
        message = choice_of(opened, thinking_token_budget=50, max_tokens=60)["message"]
    assert message["reasoning"] == "A is right."
    assert "reasoning_truncated" not in message


def test_logprobs_are_the_unheld_models_and_have_both_letters_however_improbable(checkpoint: Path) -> None:
    model = load(checkpoint, f"Hm.{CLOSED}Sorry, I can not say which is better.")
    with client(model) as opened:
        got = choice_of(opened, logprobs=True, top_logprobs=3, max_tokens=60)
    tokens = got["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == got["message"]["content"]
    num_vocabulary = len(model.turns.tokenizer.get_vocab())
    # The script's token has logit 2, all others have 0: P(other) = 1 / (e^2 + V - 1), which the choices do not change.
    unlikely = -math.log(math.exp(2) + num_vocabulary - 1)
    (letter,) = [token for token in tokens if token["token"] in "AB"]
    assert letter["logprob"] == pytest.approx(unlikely)
    top = {entry["token"]: entry["logprob"] for entry in letter["top_logprobs"]}
    assert top.keys() > {"A", "B"}
    assert sorted(top.values()) == pytest.approx([unlikely, unlikely, unlikely + 2])


@pytest.mark.parametrize("max_tokens", [16, 60])
def test_pieces_of_a_held_stream_add_up_to_the_whole_reply(random: httpx.Client, max_tokens: int) -> None:
    more = HELD | {"temperature": 1, "seed": 5, "max_tokens": max_tokens, "n": 2, "logprobs": True, "top_logprobs": 2}
    response = random.post("/v1/chat/completions", json=QUESTION | more)
    events = stream(random, **more)
    for choice in response.json()["choices"]:
        deltas = [c["delta"] for event in events for c in event["choices"] if c["index"] == choice["index"]]
        flags = [delta.pop("reasoning_truncated") for delta in deltas if "reasoning_truncated" in delta]
        assert flags == [True]
        assert choice["message"]["reasoning_truncated"] is True
        pieces = joined(events, choice["index"])
        assert {name: pieces[name] for name in ("reasoning", "content")} == {
            name: choice["message"][name] for name in ("reasoning", "content")
        }


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1 item"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice.0", "at least 1 character"),
        ({"structured_outputs": {"choice": ["A "]}}, "structured_outputs.choice", "white space"),
        ({"structured_outputs": {"choice": ["<|im_end|>"]}}, "structured_outputs.choice", "turn markup"),
        ({"structured_outputs": {"regex": "A"}}, "structured_outputs.choice", "required"),
        ({"structured_outputs": {"choice": ["A"], "regex": "A"}}, "structured_outputs.regex", "Unknown parameter"),
        ({"max_tokens": 5}, "max_tokens", "the answer alone needs"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "the answer alone needs"),
    ],
)
def test_choices_that_can_not_be_honoured_are_refused_by_name(
    random: httpx.Client, changes: dict[str, Any], param: str, says: str
) -> None:
    response = random.post("/v1/chat/completions", json=QUESTION | HELD | changes)
    assert error_of(response)[0] == 400
    assert error_of(response)[2] == param
    assert says in response.json()["error"]["message"]


def test_context_without_room_for_the_answer_is_refused(checkpoint: Path) -> None:
    model = load(checkpoint)
    with client(model) as opened:
        num_prompt = choice_of(opened, max_tokens=20)["usage"]["prompt_tokens"]
    with client(LiveModel(model._model, model.turns, max_model_len=num_prompt + 4)) as opened:
        assert opened.post("/v1/chat/completions", json=QUESTION).status_code == 200
        response = opened.post("/v1/chat/completions", json=QUESTION | HELD)
    assert error_of(response) == (400, "invalid_request_error", "messages", "context_length_exceeded")


@pytest.fixture(scope="module")
def official(checkpoint: Path) -> Iterator[openai.OpenAI]:
    from reasongenrm.serving.server import create_app

    model = load(checkpoint, f"A is right.{CLOSED}[[A]]{END}")
    with (
        serving(create_app(model, "judge", api_key="secret")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as opened,
    ):
        yield opened


def test_official_client_gets_reasoning_and_content(official: openai.OpenAI) -> None:
    reply = official.chat.completions.create(**QUESTION, logprobs=True, top_logprobs=2, max_tokens=60, extra_body=HELD)
    message = reply.choices[0].message
    assert (message.reasoning, message.reasoning_content, message.content) == (  # type: ignore[attr-defined]
        "A is right.",
        "A is right.",
        "[[A]]",
    )
    assert reply.choices[0].finish_reason == "stop"
    assert "".join(token.token for token in reply.choices[0].logprobs.content) == "[[A]]"  # type: ignore[union-attr]


def test_official_client_streams_reasoning_then_content(official: openai.OpenAI) -> None:
    chunks = list(
        official.chat.completions.create(**QUESTION, stream=True, stream_options={"include_usage": True}, max_tokens=60)
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    reasons = [getattr(delta, "reasoning", None) or "" for delta in deltas]
    contents = [delta.content or "" for delta in deltas]
    assert ("".join(reasons), "".join(contents)) == ("A is right.", "[[A]]")
    assert len([piece for piece in reasons if piece]) > 1
    last_reason = max(index for index, piece in enumerate(reasons) if piece)
    assert last_reason < min(index for index, piece in enumerate(contents) if piece)
    assert chunks[-1].usage is not None


def test_official_client_reads_the_errors(official: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="needs 1") as caught:
        official.chat.completions.create(**QUESTION, max_tokens=3, extra_body=HELD)
    assert (caught.value.param, caught.value.type) == ("max_tokens", "invalid_request_error")
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        official.with_options(api_key="other").chat.completions.create(**QUESTION)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        official.chat.completions.create(**(QUESTION | {"model": "other"}))
