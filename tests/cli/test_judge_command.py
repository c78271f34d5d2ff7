"""`reasongenrm judge --url`: one pair and files of pairs, against a judge service that prefers the longer answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from typer.testing import CliRunner, Result

from reasongenrm import Judge
from reasongenrm.cli import app, judge_command
from reasongenrm.errors import EmptyStageError, InputError
from reasongenrm.judge.api import PairwiseRequest
from reasongenrm.judge.client import client_http
from reasongenrm.judge.client.client_errors import JudgeUnavailableError
from reasongenrm.judge.client.pair_files import judge_file
from tests.endpoints import FakeEndpoint, completion, serving
from tests.judges_service import FakeJudge, refused

PAIR = ("--question", "Name a prime.", "--answer-a", "[bold]seven[/bold]", "--answer-b", "9")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    monkeypatch.setattr(client_http, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def url() -> Iterator[str]:
    with FakeJudge().running() as found:
        yield found


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, ["judge", *arguments])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(folder: Path, num: int = 4) -> Path:
    rows = [{"question": f"q{n}", "answer_a": "a" * (n % 3 + 1), "answer_b": "bb"} for n in range(num)]
    return write(folder / "pairs.jsonl", rows)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_pair_is_shown_with_both_reasons_the_verdict_and_a_bar(url: str) -> None:
    found = invoke("--url", url, *PAIR)
    assert found.exit_code == 0, found.output
    for part in (
        f"fake at {url}",
        "Answer A: [bold]seven[/bold]",  # an answer is text, never markup
        "Reason (as given): It is given.",
        "Reason (answers swapped: its A is your B): It is swapped.",
        "Verdict: answer A as given, P(A better) 0.900",
        "\u2588" * 36 + " " * 4 + " A P(A better) 0.900, not calibrated",
        "Answer A, in both orders.",
    ):
        assert part in found.stdout


def test_orders_that_disagree_are_a_tie(url: str) -> None:
    found = invoke("--url", url, "--question", "q", "--answer-a", "7", "--answer-b", "9")
    assert "A tie: the two orders do not agree." in found.stdout
    assert "Verdict: answer B as given" in found.stdout


def test_json_is_the_services_answer_and_nothing_else() -> None:
    fake = FakeJudge()
    with fake.running() as url:
        found = json.loads(invoke("--url", url, *PAIR, "--json", "--rubric", "brevity", "--votes", "2").stdout)
    assert (found["preferred"], found["p_a"], len(found["judgments"])) == ("A", 0.9, 2)
    (asked,) = fake.requests
    assert isinstance(asked, PairwiseRequest)
    assert (asked.rubric, asked.votes) == ("brevity", 2)


def test_without_an_address_the_judge_of_make_serve_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        judge_command.DEFAULT_JUDGE == "http://127.0.0.1:8080"
    )  # as `reasongenrm serve --judge-port` and `web --judge`
    monkeypatch.setattr(judge_command, "DEFAULT_JUDGE", url)
    found = invoke(*PAIR)
    assert found.exit_code == 0, found.output
    assert f"fake at {url}" in found.stdout


def test_an_empty_answer_and_equal_ones_are_said(url: str) -> None:
    one = invoke("--url", url, "--question", "q", "--answer-a", "", "--answer-b", "b")
    assert one.exit_code == 0, one.output
    assert "--answer-a is empty: the other answer is compared with no answer at all" in " ".join(one.stderr.split())
    same = invoke("--url", url, "--question", "q", "--answer-a", "b", "--answer-b", "b")
    assert "both answers are the same text: a tie" in same.stderr


def test_a_url_and_an_endpoint_give_json_of_one_shape(url: str) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(inner) for name, inner in value.items()}
        return [shape(inner) for inner in value] if isinstance(value, list) else None

    served = json.loads(invoke("--url", url, *PAIR, "--json").stdout)
    with serving(FakeEndpoint(lambda *_: completion("[[A]]", reasoning="One is better.")).app) as endpoint:
        direct = json.loads(invoke("--endpoint", f"{endpoint}/v1", *PAIR, "--json").stdout)
    assert shape(direct) == shape(served)


def test_what_is_too_long_can_be_cut(url: str) -> None:
    fake = FakeJudge()
    with fake.running() as url:
        assert invoke("--url", url, *PAIR, "--when-too-long", "truncate").exit_code == 0
    (asked,) = fake.requests
    assert isinstance(asked, PairwiseRequest)
    assert asked.when_too_long == "truncate"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--url", "http://127.0.0.1:9", *PAIR, "--endpoint", "http://127.0.0.1:9/v1"), "one of --url URL"),
        (("--url", "http://127.0.0.1:9", *PAIR, "--style", "plain"), "--style has no effect with --url"),
        (("--url", "http://127.0.0.1:9", *PAIR, "-o", "x"), "--output needs --file"),
        (("--url", "http://127.0.0.1:9", "--question", "q", "--answer-a", "a"), "--answer-b is missing"),
        (("--url", "http://127.0.0.1:9", *PAIR, "--file", "x"), "--question has no effect with --file"),
        (("--url", "http://127.0.0.1:9", "--file", "x"), "and --output, the file for the judgments"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--file", "x", "-o", "y"), "--file needs --url, a judge service"),
        (("--url", "http://127.0.0.1:9/v1", *PAIR), "without /v1"),
        (("--question", " ", "--answer-a", "a", "--answer-b", "b"), "--question is empty"),
        (("--question", "q", "--answer-a", "", "--answer-b", ""), "--answer-a and --answer-b are empty"),
        ((*PAIR, "--rubric", "x" * 20_001), "judge: rubric: String should have at most 20000 characters"),
    ],
)
def test_options_that_say_nothing_together_are_refused(arguments: tuple[str, ...], words: str) -> None:
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert words in " ".join(found.stderr.split())


def test_a_file_is_judged_line_for_line(url: str, tmp_path: Path) -> None:
    output = tmp_path / "new" / "judged.jsonl"
    found = invoke("--url", url, "--file", str(pairs(tmp_path)), "-o", str(output))
    assert found.exit_code == 0, found.output
    lines = read(output)
    assert [line["id"] for line in lines] == ["line 1", "line 2", "line 3", "line 4"]
    assert [line["result"]["preferred"] for line in lines] == ["B", "tie", "A", "B"]
    # Mean of 0.1, 0.5, 0.9 and 0.1.
    expected = "4 pairs: 1 A, 2 B, 1 ties (1 with orders that disagree), 0 unread, mean P(A better) 0.400"
    assert expected in " ".join(found.stdout.split())
    assert [path.name for path in output.parent.iterdir()] == ["judged.jsonl"]


def test_a_run_that_broke_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def fails_third(_: str, number: int) -> Response | None:
        return refused(502, "predictor_refused", "no completion") if number == 2 else None

    file, output = pairs(tmp_path), tmp_path / "judged.jsonl"
    with FakeJudge(fails_third).running() as url, Judge(url) as judge, pytest.raises(JudgeUnavailableError):
        judge_file(judge, file, output, {}, 1)
    partial = tmp_path / "judged.jsonl.partial"
    assert not output.exists()
    assert [line["id"] for line in read(partial)] == ["line 1", "line 2"]
    with partial.open("ab") as half:
        half.write(b'{"id": "line 3", "asked": "')  # as a kill leaves it
    fake = FakeJudge()
    with fake.running() as url, Judge(url) as judge:
        summary = judge_file(judge, file, output, {}, 1)
    assert summary.num_in == 4
    assert [one.question for one in fake.requests if isinstance(one, PairwiseRequest)] == ["q2", "q3"]
    assert [line["id"] for line in read(output)] == ["line 1", "line 2", "line 3", "line 4"]
    assert not partial.exists()


def test_judgments_for_another_request_are_not_used_again(tmp_path: Path) -> None:
    file, output = pairs(tmp_path, 1), tmp_path / "judged.jsonl"
    fake = FakeJudge()
    with fake.running() as url, Judge(url) as judge:
        judge_file(judge, file, output, {}, 1)
        output.rename(tmp_path / "judged.jsonl.partial")
        judge_file(judge, file, output, {"rubric": "brevity"}, 1)
        assert len(fake.requests) == 2
        output.rename(tmp_path / "judged.jsonl.partial")
        judge_file(judge, file, output, {"rubric": "brevity"}, 1)
        assert len(fake.requests) == 2


def test_a_refused_pair_stands_with_its_error_and_is_counted(tmp_path: Path) -> None:
    def refuse(_: str, number: int) -> Response | None:
        return refused(422, "too_long", "too long", param="answer_a") if number == 1 else None

    output = tmp_path / "judged.jsonl"
    with FakeJudge(refuse).running() as url, Judge(url) as judge:
        summary = judge_file(judge, pairs(tmp_path, 3), output, {}, 1)
    assert summary.num_dropped == {"too_long": 1}
    assert "1 dropped as too_long" in summary.line()
    errors = [line["error"] for line in read(output)]
    assert (errors[0], errors[1]["code"], errors[1]["param"], errors[2]) == (None, "too_long", "answer_a", None)
    fake = FakeJudge(lambda *_: refused(422, "too_long", "too long"))
    with fake.running() as url, Judge(url) as judge, pytest.raises(EmptyStageError, match="3 dropped as too_long"):
        judge_file(judge, pairs(tmp_path, 3), output, {}, 1)


def test_a_line_may_have_its_own_id_and_options(tmp_path: Path) -> None:
    row = {"id": 7, "question": [{"role": "user", "content": "Hi"}], "answer_a": "a", "answer_b": "b", "rubric": "mine"}
    fake = FakeJudge()
    with fake.running() as url, Judge(url) as judge:
        judge_file(judge, write(tmp_path / "p", [row]), tmp_path / "o", {"rubric": "all", "votes": 2}, 1)
    (asked,) = fake.requests
    assert isinstance(asked, PairwiseRequest)
    assert (asked.rubric, asked.votes) == ("mine", 2)
    assert read(tmp_path / "o")[0]["id"] == "7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "p: the file has no rows"),
        ("{\n", "p line 1: not JSON"),
        ('\n{"question": "q", "answer_a": "a"}\n', "p line 2: answer_b: Field required"),
        ('{"question": "q", "answer_a": "a", "answer_b": "b", "votes": 99}', "votes: Input should be less than"),
        ('{"id": 1, "question": "q", "answer_a": "a", "answer_b": "b"}\n' * 2, "p line 2: id '1' came before"),
    ],
)
def test_a_line_that_is_no_pair_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text(text)
    with Judge("http://127.0.0.1:9") as judge, pytest.raises(InputError, match=words):
        judge_file(judge, tmp_path / "p", tmp_path / "o", {}, 1)
    assert not (tmp_path / "o.partial").exists()


def test_preferences_are_judged_with_the_chosen_answer_first(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Name a prime.", "chosen": "seven", "rejected": "9"},
        {"prompt": "Name a lake.", "chosen": "Como", "rejected": "Como"},
        {"prompt": "Name a river.", "chosen": "Elbe", "rejected": "Berlin"},
    ]
    fake = FakeJudge()
    with fake.running() as url, Judge(url) as judge:
        summary = judge_file(judge, write(tmp_path / "p.jsonl", rows), tmp_path / "o", {}, 1)
    assert (summary.num_in, summary.num_a, summary.num_b, summary.num_dropped) == (3, 1, 1, {"equal_answers": 1})
    first = fake.requests[0]
    assert isinstance(first, PairwiseRequest)
    assert (first.turns()[0].content, first.answer_a, first.answer_b) == ("Name a prime.", "seven", "9")
    assert [line["id"] for line in read(tmp_path / "o")] == ["000000", "000002"]
    with Judge("http://127.0.0.1:9") as judge, pytest.raises(EmptyStageError, match=r"no pair is left.*equal_answers"):
        judge_file(judge, write(tmp_path / "p.jsonl", rows[1:2]), tmp_path / "o", {}, 1)
