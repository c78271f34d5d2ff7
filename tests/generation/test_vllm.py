"""The vLLM engine in real processes, against a stand-in for the package `vllm` (stand_in/).

What is checked here is our side of vLLM's interface: what is asked of `LLM` and its engine, how outputs become records,
and that no process hangs or stays. Real vLLM is exercised by the tests marked `vllm` (test_vllm_real.py) and `gpu`.
"""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import EngineConfig
from reasongenrm.data.chat import render
from reasongenrm.errors import ConfigError, EngineError, InputError
from reasongenrm.generation import open_engine
from reasongenrm.generation.seam import GenerationRequest, Sampling, sample_seed
from reasongenrm.generation.vllm import VLLMEngine
from tests.tiny import BY_NAME, tiny_checkpoint

ROOT = Path(__file__).parents[2]
CHATML = BY_NAME["chatml"]
SCRIPT = f"A is right.{CHATML.turn_end}{CHATML.assistant_header}[[A]]{CHATML.turn_end}{CHATML.sequence_end}"

Open = Callable[..., VLLMEngine]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "judge", "chatml", opening_role="reason")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in is installed, here and in child processes; the folder of its script and its logs."""
    from transformers import AutoTokenizer

    script = AutoTokenizer.from_pretrained(checkpoint).encode(SCRIPT, add_special_tokens=False)
    (tmp_path / "script.json").write_text(json.dumps(script))
    stand_in = Path(__file__).parent / "stand_in"
    monkeypatch.syspath_prepend(stand_in)
    monkeypatch.setenv("PYTHONPATH", f"{stand_in}:{ROOT}")
    monkeypatch.setenv("VLLM_STAND_IN", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def opened(checkpoint: Path, folder: Path) -> Iterator[Open]:
    """Opens engines and closes them; none of their processes may be left then."""
    engines: list[VLLMEngine] = []

    def open_vllm(path: Path = checkpoint, **config: Any) -> VLLMEngine:
        engine = open_engine(path, EngineConfig(kind="vllm", **config))
        assert isinstance(engine, VLLMEngine)
        engines.append(engine)
        return engine

    yield open_vllm
    for engine in engines:
        engine.close()
    await_end([pid for start in starts(folder) for pid in start["processes"]])


def starts(folder: Path) -> list[dict[str, Any]]:
    """What `LLM` was asked for, a dict for each replica."""
    return [record for record in records(folder) if "llm" in record]


def asked(folder: Path) -> list[dict[str, Any]]:
    """The requests that the stand-in got, process by process, in order."""
    return [record for record in records(folder) if "request" in record]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for log in sorted(folder.glob("log-*.jsonl")) for line in log.read_text().splitlines()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def await_end(pids: list[int]) -> None:
    """Return when none of the processes runs; the test's time-out ends a longer wait."""
    while any(is_alive(pid) for pid in pids):
        time.sleep(0.1)


def ask(name: str, text: str = "Which?", **changes: Any) -> GenerationRequest:
    return GenerationRequest(name, ({"role": "user", "content": text},), **{"opening_role": "reason", **changes})


def test_reason_and_verdict_come_from_one_generation(opened: Open, checkpoint: Path, folder: Path) -> None:
    engine = opened(max_model_len=512, gpu_memory_utilization=0.5, dtype="bfloat16")
    ((one,),) = engine.generate([ask("q")], Sampling(max_tokens=99))
    assert (one.reason, one.answer, one.finish_reason) == ("A is right.", "[[A]]", "stop")
    assert one.num_output_tokens == len(json.loads((folder / "script.json").read_text()))
    assert engine.model_name == "judge"
    (start,) = starts(folder)
    assert start["llm"] == [str(checkpoint), "bfloat16", 512, 1, 0.5]
    assert (start["max_num_seqs"], start["enable_prefix_caching"], start["generation_config"]) == (512, True, "vllm")


def test_probabilities_of_the_verdicts_are_read_when_they_are_asked_for(opened: Open, folder: Path) -> None:
    engine = opened()
    ((one,),) = engine.generate([ask("q")], Sampling(max_tokens=99, verdict_logprobs=True))
    assert one.p_a == pytest.approx(1 / (1 + math.exp(-1)))  # the stand-in gives -0.25 and -1.25
    ((one,),) = engine.generate([ask("q")], Sampling(max_tokens=99))
    assert one.p_a is None
    letters = engine.turns.tokenizer.convert_tokens_to_ids(["A", "B"])
    assert [request["logprob_token_ids"] for request in asked(folder)] == [letters, None]


def test_held_to_a_letter_it_is_allowed_the_two_alone(opened: Open, folder: Path) -> None:
    engine = opened()
    held = ask("q", opening_role="assistant", answer_start="[[")
    ((one,),) = engine.generate([held], Sampling(max_tokens=1, letters_alone=True))
    tokenizer = engine.turns.tokenizer
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])
    (request,) = asked(folder)
    assert request["allowed_token_ids"] == letters
    assert request["prompt"][-len(tokenizer.encode("[[")) :] == tokenizer.encode("[[")
    assert one.answer == "A"  # the stand-in takes the first that is allowed


def test_each_sample_is_asked_for_with_its_own_seed_and_our_tokens_beside_those_of_its_prompt(
    opened: Open, folder: Path
) -> None:
    engine = opened()
    requests = [ask("q0"), ask("q1", "Why?", stop_at="turn")]
    list(engine.generate(requests, Sampling(max_tokens=9, temperature=0.7, top_p=0.9, num_samples=2, seed=3)))
    got = asked(folder)
    tokenizer = engine.turns.tokenizer
    end, turn_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    expected = [render(tokenizer, request.messages, opening_role="reason") for request in requests]
    assert [one["prompt"] for one in got] == [expected[0]] * 2 + [expected[1]] * 2
    assert [one["seed"] for one in got] == [sample_seed(3, name, s) for name in ("q0", "q1") for s in (0, 1)]
    assert [one["stop_token_ids"] for one in got] == [[end]] * 2 + [sorted([end, turn_end])] * 2
    same = {(one["max_tokens"], one["temperature"], one["top_p"], one["ignore_eos"], one["detokenize"]) for one in got}
    assert same == {(9, 0.7, 0.9, True, False)}


def test_batches_come_in_order_without_those_that_are_done(opened: Open, folder: Path) -> None:
    engine = opened(batch_size=4)
    requests = [ask(f"q{i}") for i in range(5)]
    batches = list(engine.generate(requests, Sampling(max_tokens=3, num_samples=2), skip={"q0", "q1", "q2"}))
    assert [[(g.request_id, g.sample) for g in batch] for batch in batches] == [
        [("q2", 0), ("q2", 1), ("q3", 0), ("q3", 1)],
        [("q4", 0), ("q4", 1)],
    ]
    assert len(asked(folder)) == 6
    assert {g.finish_reason for batch in batches for g in batch} == {"length"}


def test_prompt_beyond_the_context_is_cut_off_not_the_end_of_the_run(opened: Open, folder: Path) -> None:
    engine = opened(max_model_len=20, batch_size=2)
    long = "much longer " * 20
    requests = [ask("q0", "Q"), ask("q1", long), ask("q2", long), ask("q3", long)]  # the second batch has no other
    (fits, *cut) = [g for batch in engine.generate(requests, Sampling(max_tokens=99)) for g in batch]
    assert [(g.answer, g.num_output_tokens, g.finish_reason) for g in cut] == [("", 0, "length")] * 3
    assert [one["max_tokens"] for one in asked(folder)] == [20 - fits.num_prompt_tokens]


def test_run_that_was_broken_off_leaves_nothing_to_the_next(opened: Open) -> None:
    engine = opened(batch_size=1)
    first = engine.generate([ask(f"old{i}") for i in range(9)], Sampling(max_tokens=99))
    assert next(first)[0].request_id == "old0"
    first.close()
    batches = engine.generate([ask(f"new{i}") for i in range(3)], Sampling(max_tokens=99))
    assert [g.request_id for batch in batches for g in batch] == ["new0", "new1", "new2"]


def test_seconds_of_all_samples_add_up_to_the_wall_time(opened: Open) -> None:
    engine = opened(batch_size=2)
    started = time.perf_counter()
    batches = list(engine.generate([ask(f"q{i}") for i in range(6)], Sampling(max_tokens=9)))
    total = sum(g.seconds for batch in batches for g in batch)
    assert 0 < total <= time.perf_counter() - started


def test_two_replicas_have_their_own_gpus_and_give_the_records_of_one(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(f"q{i}", f"Which, {i}?") for i in range(6)]
    sampling = Sampling(max_tokens=99, num_samples=2, seed=1, temperature=1.0)

    def answers(engine: VLLMEngine) -> list[list[tuple[Any, ...]]]:
        batches = engine.generate(requests, sampling)
        return [[(g.request_id, g.sample, g.reason, g.answer, g.num_output_tokens) for g in batch] for batch in batches]

    alone = answers(opened(batch_size=2))
    seeds = sorted(one["seed"] for one in asked(folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-6,GPU-7,8")
    before = {log.name for log in folder.glob("log-*.jsonl")}
    assert answers(opened(batch_size=2, tensor_parallel_size=2)) == alone
    logs = {log: log.read_text().splitlines() for log in folder.glob("log-*.jsonl") if log.name not in before}
    assert sorted(json.loads(lines[0])["gpus"] for lines in logs.values()) == ["3,5", "GPU-6,GPU-7"]
    shares = [[json.loads(line)["seed"] for line in lines[1:]] for lines in logs.values()]
    assert [len(share) for share in shares] == [6, 6]  # three of six batches each
    assert sorted(shares[0] + shares[1]) == seeds


def test_replica_that_dies_is_an_error_at_once_and_takes_its_processes_along(opened: Open, folder: Path) -> None:
    engine = opened(data_parallel_size=2, batch_size=2)
    (folder / "die").touch()
    with pytest.raises(
        EngineError, match=r"judge: replica [01]: vLLM's process was ended by SIGKILL, with 4 samples under way"
    ):
        list(engine.generate([ask(f"q{i}") for i in range(8)], Sampling(max_tokens=99)))


def test_killed_run_leaves_no_process_behind(checkpoint: Path, folder: Path) -> None:
    program = (
        "from pathlib import Path; import time\n"
        "from reasongenrm.config import EngineConfig\n"
        "from reasongenrm.generation.vllm_process import ReplicaPool, ReplicaSettings\n"
        f"settings = ReplicaSettings(Path({str(checkpoint)!r}), EngineConfig(), 64)\n"
        "pool = ReplicaPool.start(settings, [[], []])\n"
        "print('open', flush=True); time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "open\n"
    pids = [pid for start in starts(folder) for pid in start["processes"]]
    assert len(pids) == 4
    assert all(is_alive(pid) for pid in pids)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    await_end(pids)


def test_function_runs_on_the_llm_of_a_replica(opened: Open) -> None:
    (replica,) = opened().pool.replicas
    assert replica.call(attrgetter("llm_engine.max_num_seqs")) == 512


def test_refusals_of_vllm_become_engine_errors(opened: Open, checkpoint: Path) -> None:
    with pytest.raises(EngineError, match=r"judge: replica 0: vLLM failed: top_p must be in \(0, 1\]"):
        list(opened(batch_size=1).generate([ask(f"q{i}") for i in range(200)], Sampling(max_tokens=9, top_p=0.0)))
    with pytest.raises(EngineError, match="judge: replica 0: vLLM cannot start: World size"):
        opened(tensor_parallel_size=9)
    with pytest.raises(InputError, match=r"nothing: found no config\.json"):
        opened(checkpoint / "nothing")


def test_missing_vllm_is_said_with_the_way_out(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"engine\.kind is 'vllm', but .* set engine\.kind: transformers"):
        open_engine(checkpoint, EngineConfig(kind="vllm"))


@pytest.mark.gpu
def test_real_vllm_writes_the_tokens_that_transformers_writes(checkpoint: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM has an environment of its own (extra 'vllm')")
    requests = [ask("q0"), ask("q1", "Why is B better than A?"), ask("q2", "Q", stop_at="turn")]
    sampling = Sampling(max_tokens=16)
    found = []
    for kind in ("vllm", "transformers"):
        config = EngineConfig(kind=kind, dtype="float32", max_model_len=256, gpu_memory_utilization=0.2)
        engine = open_engine(checkpoint, config)
        got = {g.request_id: g for batch in engine.generate(requests, sampling) for g in batch}
        found.append({name: (g.reason, g.answer, g.num_output_tokens, g.finish_reason) for name, g in got.items()})
        if kind == "vllm":
            drawn = [Sampling(max_tokens=16, temperature=1.0, num_samples=2, seed=seed) for seed in (1, 1, 2)]
            reasons = [[g.reason for batch in engine.generate(requests, one) for g in batch] for one in drawn]
            assert reasons[0] == reasons[1] != reasons[2]
        engine.close()
    assert found[0] == found[1]
