"""Several real processes with DeepSpeed ZeRO-2, ZeRO-3 and FSDP2, on one node and on two: they train as one process
does.

They talk over gloo on CPUs (`tests/gloo`). In float32, losses agree with one process's within 1e-5 relative and
gradient norms within 1e-4. Adam divides a gradient by its size, so the sign of one that is all rounding decides where a
weight goes: the weights are compared as a whole, and differ by less than 1 % of what was learned. Half of the gradients
would be tens of percent.
"""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.errors import TrainingError
from reasongenrm.store.artifacts import ArtifactRef, Store, download, read_file
from reasongenrm.store.seaweed import EmbeddedStore
from reasongenrm.store.stage import Stage
from reasongenrm.training.dpo import train_dpo
from reasongenrm.training.job import LOG
from reasongenrm.training.sft import train_sft
from reasongenrm.training.sharding import deepspeed_config, fsdp_config, without_tied
from tests.training_cases import preferences, put_model, put_records, training_examples
from tests.waiting import HANG_SECONDS

SETTINGS: dict[str, Any] = {
    "train_batch_size": 4,
    "max_batch_tokens": 700,  # two or three of the examples
    "max_steps": 3,
    "max_length": 2048,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "dtype": "float32",
    "gradient_checkpointing": False,
}
WEIGHTS = 47904  # of the tiny model, its tied lm_head counted once
SHARDS = {  # kind of processes, ZeRO stage, and which share of weights and of Adam's moments each of two holds
    "zero2": ("DEEPSPEED", 2, WEIGHTS, WEIGHTS // 2),
    "zero3": ("DEEPSPEED", 3, WEIGHTS // 2, WEIGHTS // 2),
    "fsdp2": ("FSDP", None, WEIGHTS // 2, WEIGHTS // 2),
}


@pytest.fixture
def gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training processes shard over gloo."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "gloo"))
    monkeypatch.setenv("GLOO_SHARDING", "1")


def sft(store: Store, folder: Path, **settings: object) -> ArtifactRef:
    model = put_model(store, folder / "model")
    examples = put_records(store, "select_reasons", "examples.jsonl", training_examples(6))
    config = SFTConfig.model_validate({**SETTINGS, **settings})
    return train_sft(store, config, "sft", model, examples)


def dpo(store: Store, folder: Path, **settings: object) -> ArtifactRef:
    model = put_model(store, folder / "model", opening_role="reason")
    pairs = put_records(store, "select_preferences", "preferences.jsonl", preferences(6))
    return train_dpo(store, DPOConfig.model_validate({**SETTINGS, **settings}), model, pairs)


@pytest.fixture(scope="module")
def one_process(store_env: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    """What one process makes of the examples."""
    return sft(Store(f"{store_env.uri}/test-sharding"), tmp_path_factory.mktemp("one"))


def assert_agree(one: ArtifactRef, many: ArtifactRef, folder: Path) -> None:
    """The same rows in the log, and weights that plain `from_pretrained` loads, each stored once."""
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    rows, others = (json.loads(read_file(ref, LOG)) for ref in (one, many))
    for row, other in zip(rows, others, strict=True):
        assert (row["step"], row["num_tokens"]) == (other["step"], other["num_tokens"])
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
    folders = [download(ref, folder / name) for ref, name in ((one, "one"), (many, "many"))]
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(path.name for path in folders[1].iterdir())
    with safe_open(folders[1] / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - no mapping
    start, left, right = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder / "model", *folders)
    )
    assert {name: weights.dtype for name, weights in left.items()} == {name: right[name].dtype for name in right}
    learned, apart = (
        sum(float((left[name] - from_[name]).square().sum()) for name in left) for from_ in (start, right)
    )
    assert math.sqrt(apart) < 1e-2 * math.sqrt(learned)


def witnesses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("sharding", ["zero2", "zero3", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_sharded_sft_in_two_processes_is_that_of_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: ArtifactRef, sharding: str
) -> None:
    (tmp_path / "witness").mkdir()
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    two = sft(store, tmp_path, num_processes=2, sharding=sharding)
    kind, stage, weights, moments = SHARDS[sharding]
    found = witnesses(tmp_path / "witness")
    assert [witness.pop("policy", None) for witness in found] == [["None"] * 3 if sharding == "fsdp2" else None] * 2
    held = {"weights": weights, "moments": moments, "dtypes": ["torch.float32"]}
    assert found == [{"kind": kind, "num_processes": 2, "zero_stage": stage, **held}] * 2
    assert_agree(one_process, two, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("sharding", ["zero3", "fsdp2"])
def test_sharded_dpo_in_two_processes_is_that_of_one(store: Store, tmp_path: Path, sharding: str) -> None:
    one = dpo(store, tmp_path)
    assert_agree(one, dpo(store, tmp_path, num_processes=2, sharding=sharding), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("sharding", ["zero2", "fsdp2"])
def test_reference_of_dpo_is_not_rounded_to_bfloat16(store: Store, tmp_path: Path, sharding: str) -> None:
    rows = json.loads(read_file(dpo(store, tmp_path, num_processes=2, sharding=sharding, dtype="bfloat16"), LOG))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the policy is its own reference


@pytest.mark.slow
@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("sharding", ["zero2", "zero3", "fsdp2"])
def test_bfloat16_keeps_master_weights_and_moments_in_float32(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    one = sft(store, tmp_path, dtype="bfloat16", learning_rate=1e-5)
    (tmp_path / "witness").mkdir()
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    two = sft(store, tmp_path, dtype="bfloat16", learning_rate=1e-5, num_processes=2, sharding=sharding)
    found = witnesses(tmp_path / "witness")
    assert [witness["dtypes"] for witness in found] == [["torch.float32"]] * 2
    if sharding == "fsdp2":  # computes in bfloat16, adds gradients up and hands losses out in float32
        assert [witness["policy"] for witness in found] == [["torch.bfloat16", "torch.float32", "None"]] * 2
    for row, other in zip(*(json.loads(read_file(ref, LOG)) for ref in (one, two)), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=5e-3)  # bfloat16 has 8 bits
    assert AutoModelForCausalLM.from_pretrained(download(two, tmp_path / "two")).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("sharding", ["zero2", "zero3", "fsdp2"])
def test_sharded_run_of_which_a_process_was_killed_goes_on_to_the_same_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str, capfd: pytest.CaptureFixture[str]
) -> None:
    disturbed, undisturbed = Store(f"{store.uri}/disturbed"), Store(f"{store.uri}/undisturbed")
    settings = {"save_steps": 2, "max_steps": 4, "num_processes": 2, "sharding": sharding}
    monkeypatch.setenv("DIE", "1,3")
    with pytest.raises(TrainingError, match=r"2 processes: torchrun ended with exit code 1[\s\S]*\(SIGKILL\)"):
        sft(disturbed, tmp_path, **settings)
    monkeypatch.delenv("DIE")
    resumed = sft(disturbed, tmp_path, **settings)
    assert "train_sft: resumes from step 2" in capfd.readouterr().err
    assert resumed.digest == sft(undisturbed, tmp_path, **settings).digest
    assert not any("/checkpoints/" in name for name in disturbed.list())


def test_run_of_two_processes_goes_on_in_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    straight, disturbed = Store(f"{store.uri}/straight"), Store(f"{store.uri}/disturbed")
    one = sft(straight, tmp_path, max_steps=4)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "gloo"))
    monkeypatch.setenv("DIE", "0,3")
    with pytest.raises(TrainingError, match="SIGKILL"):
        sft(disturbed, tmp_path, max_steps=4, save_steps=2, num_processes=2)
    resumed = sft(disturbed, tmp_path, max_steps=4, save_steps=2)  # num_processes is no part of the key
    assert "train_sft: resumes from step 2" in capfd.readouterr().err
    assert_agree(one, resumed, tmp_path)


# --- two nodes ---

_NODE = """
import json, sys
from pathlib import Path
from reasongenrm.config import DPOConfig, SFTConfig
from reasongenrm.training.dpo import train_dpo
from reasongenrm.errors import ReasonGenRMError
from reasongenrm.training.sft import train_sft
from reasongenrm.store.artifacts import ArtifactRef, Store

store, config, folder, written = Store(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
put = Store.put_files, Store.put_bytes

def put_files(self, files):
    note(files)
    put[0](self, files)

def put_bytes(self, name, data):
    note([name])
    put[1](self, name, data)

def note(names):
    with open(written, "a") as file:
        file.writelines(name + "\\n" for name in names)

Store.put_files, Store.put_bytes = put_files, put_bytes
inputs = [ArtifactRef.read(folder / name) for name in ("model.json", "records.json")]
try:
    if "beta" in json.loads(config):
        ref = train_dpo(store, DPOConfig.model_validate_json(config), *inputs)
    else:
        ref = train_sft(store, SFTConfig.model_validate_json(config), "sft", *inputs)
    ref.write(folder / "ref.json")
except ReasonGenRMError as error:
    sys.exit(f"error: {error}")
"""


def nodes(store: Store, folder: Path, config: TrainConfig, **env: str) -> list["subprocess.CompletedProcess[str]"]:
    """Train on two nodes, as a TrainJob with two pods of one process each starts them; both have ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(2):
        environ = {
            **os.environ,
            **env,
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        written = str(folder / f"written-{rank}.txt")
        command = [sys.executable, "-c", _NODE, store.uri, config.model_dump_json(), str(folder), written]
        running.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
    ended = []
    try:
        for process in running:
            _, stderr = process.communicate(timeout=HANG_SECONDS)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, "", stderr))
    finally:
        for process in running:
            process.kill()
    return ended


@pytest.mark.slow
@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize(("trainer", "sharding"), [("sft", "none"), ("dpo", "zero3")])
def test_two_nodes_train_as_one_process_does_also_after_one_of_them_failed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, sharding: str
) -> None:
    settings = {**SETTINGS, "max_steps": 4, "save_steps": 2}
    config: TrainConfig
    if trainer == "sft":
        monkeypatch.delenv("GLOO_SHARDING")
        one = sft(store, tmp_path, max_steps=4)
        model = put_model(store, tmp_path / "model")
        records = put_records(store, "select_reasons", "examples.jsonl", training_examples(6))
        config = SFTConfig.model_validate({**settings, "sharding": sharding})
    else:
        one = dpo(store, tmp_path, max_steps=4)
        model = put_model(store, tmp_path / "model", opening_role="reason")
        records = put_records(store, "select_preferences", "preferences.jsonl", preferences(6))
        config = DPOConfig.model_validate({**settings, "sharding": sharding})
    model.write(tmp_path / "model.json")
    records.write(tmp_path / "records.json")
    two_nodes = Store(f"{store.uri}/two")

    first, second = nodes(two_nodes, tmp_path, config, DIE="1,3")
    assert (first.returncode, second.returncode) == (1, 1)
    assert "node 1 of 2 nodes x 1 process: torchrun ended with exit code 1" in second.stderr
    assert "(SIGKILL)" in second.stderr
    assert "node 0 of 2 nodes x 1 process: torchrun ended with exit code 1" in first.stderr
    assert "another node's log says what happened first" in first.stderr
    left = {name.split("/checkpoints/")[1] for name in two_nodes.list() if "/checkpoints/" in name}
    assert {"00000002/manifest.json", "00000002/rng_state_0.pth", "00000002/rng_state_1.pth"} <= left
    own = [name for name in left if "zero_pp_rank_1" in name]
    assert len(own) == (2 if sharding == "zero3" else 0)  # from the second node's own disk

    first, second = nodes(two_nodes, tmp_path, config)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert f"train_{trainer}: resumes from step 2" in first.stderr
    assert f"train_{trainer}: resumes from step 2" in second.stderr
    assert "wrote s3://" in first.stderr
    assert "wrote s3://" not in second.stderr
    assert (tmp_path / "written-0.txt").exists()
    assert not (tmp_path / "written-1.txt").exists()  # the second node's own process wrote nothing
    assert_agree(one, ArtifactRef.read(tmp_path / "ref.json"), tmp_path)


# --- settings ---


def test_settings_of_one_kind_of_sharding_say_nothing_of_another() -> None:
    configs = {kind: SFTConfig.model_validate({"sharding": kind}) for kind in ("none", "zero2", "zero3", "fsdp2")}
    assert [kind for kind, config in configs.items() if deepspeed_config(config)] == ["zero2", "zero3"]
    assert [kind for kind, config in configs.items() if fsdp_config(config, checkpointing=False)] == ["fsdp2"]
    zero2, zero3 = (deepspeed_config(configs[kind]) for kind in ("zero2", "zero3"))
    assert zero2 is not None
    assert zero3 is not None
    assert zero2["zero_optimization"]["stage"] == 2
    assert zero3["zero_optimization"]["stage"] == 3
    assert zero3["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_config_of_deepspeed_has_only_keys_that_deepspeed_knows() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for kind in ("zero2", "zero3"):
        config = deepspeed_config(SFTConfig.model_validate({"sharding": kind}))
        assert config is not None
        fields = DeepSpeedZeroConfig.model_fields
        known = {*fields, *(field.alias for field in fields.values())}
        assert set(config["zero_optimization"]) <= known


def test_fsdp_reads_weights_once_where_the_trainer_can_send_them() -> None:
    for kind, efficient in ((SFTConfig, True), (DPOConfig, False)):
        found = fsdp_config(kind.model_validate({"sharding": "fsdp2"}), checkpointing=True)
        assert found is not None
        assert found["cpu_ram_efficient_loading"] is efficient
        assert found["activation_checkpointing"] is True


def test_tied_weights_are_kept_once() -> None:
    state = {"embed": 1, "lm_head": 1, "norm": 2}
    assert without_tied(state, {"lm_head": "embed"}) == {"embed": 1, "norm": 2}
    assert without_tied(state, {}) == state


# --- what accelerate made of the settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sharding": "zero2"},
            r"1 process\(es\) of kind NO .*; expected 2 .* of kind DEEPSPEED with sharding 'zero2'",
        ),
        ({"sharding": "fsdp2"}, r"expected 2 process\(es\) of kind FSDP with sharding 'fsdp2'. Sharding needs GPUs"),
        ({}, r"1 process\(es\) of kind NO .*; expected 2 process\(es\) of kind MULTI_CPU with sharding 'none'"),
    ],
)
def test_fall_back_to_other_processes_is_noticed(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    from reasongenrm.training import trainers
    from tests.training.test_torchrun import job

    class Fallen:
        """What accelerate is when it fell back to one plain process."""

        class accelerator:
            num_processes = 1

            class distributed_type:
                value = "NO"

    config = SFTConfig.model_validate({**SETTINGS, **settings})
    with pytest.raises(TrainingError, match=message):
        trainers._check_processes(Fallen, config, job(tmp_path, config))


def test_other_stage_of_zero_than_asked_is_noticed(tmp_path: Path) -> None:
    from reasongenrm.training import trainers
    from tests.training.test_torchrun import job

    class Weaker:
        """ZeRO-2 where ZeRO-3 was asked for."""

        class accelerator:
            num_processes = 2

            class distributed_type:
                value = "DEEPSPEED"

            class state:
                class deepspeed_plugin:
                    zero_stage = 2

    config = SFTConfig.model_validate({**SETTINGS, "sharding": "zero3"})
    with pytest.raises(TrainingError, match=r"DEEPSPEED with sharding 'zero2'; expected .* with sharding 'zero3'"):
        trainers._check_processes(Weaker, config, job(tmp_path, config))


# --- checkpoints of several processes ---


def test_file_that_two_nodes_have_is_uploaded_by_the_first() -> None:
    from reasongenrm.store.artifacts import FileEntry
    from reasongenrm.training.checkpoints import first_owners

    def entry(path: str, size: int) -> FileEntry:
        return FileEntry(path=path, size=size, sha256="0" * 64)

    owned = first_owners(
        [(0, (entry("latest", 1), entry("shard_0", 2))), (1, ()), (2, (entry("latest", 9), entry("shard_2", 3)))]
    )
    assert {path: (rank, found.size) for path, (rank, found) in owned.items()} == {
        "latest": (0, 1),
        "shard_0": (0, 2),
        "shard_2": (2, 3),
    }


def test_checkpoint_of_other_processes_is_left_alone_where_it_cannot_be_read(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/shard").write_bytes(b"shard")
    stage = Stage(store, "train_sft", SFTConfig(), {})
    from reasongenrm.store.stage import checkpoint_entries

    entries = checkpoint_entries(tmp_path / "saved")
    stage.put_checkpoint_files(4, tmp_path / "saved", entries)
    assert stage.latest_checkpoint(tmp_path / "early") is None  # no manifest yet
    stage.finish_checkpoint(4, entries, num_processes=8)
    assert stage.latest_checkpoint(tmp_path / "four", num_processes=4) is None
    said = capfd.readouterr().err
    assert (
        "train_sft: the checkpoint of step 4 was written by 8 process(es); with this sharding, 4 cannot read it" in said
    )
    assert "train_sft: starts from the beginning" in said
    assert stage.latest_checkpoint(tmp_path / "eight", num_processes=8) == tmp_path / "eight/checkpoint-4"
    assert stage.latest_checkpoint(tmp_path / "any") == tmp_path / "any/checkpoint-4"
    stage.begin_checkpoint(4)  # written anew: until then it must not look whole
    assert stage.latest_checkpoint(tmp_path / "again", num_processes=8) is None
