"""Which processes train, told from the config, the GPUs and Kubeflow Trainer's environment; what they are refused."""

from collections import namedtuple
from typing import Any

import pytest

from reasongenrm.config import SFTConfig
from reasongenrm.errors import ConfigError
from reasongenrm.processes import extras
from reasongenrm.training import world as processes
from reasongenrm.training.world import World, find_world

# As Kubeflow Trainer's torch plugin sets it in the second of two pods with two processes each.
SECOND_NODE = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "2",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "judge-node-0-0.judge",
    "PET_MASTER_PORT": "29400",
}


def with_settings(**settings: object) -> SFTConfig:
    return SFTConfig.model_validate({"train_batch_size": 8, **settings})


def with_gpus(monkeypatch: pytest.MonkeyPatch, num: int, shared_memory_mib: int = 8192) -> None:
    """A machine with so many GPUs."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num)
    usage = namedtuple("usage", "total used free")

    def disk_usage(path: str) -> Any:
        assert path == "/dev/shm"
        return usage(shared_memory_mib << 20, 0, shared_memory_mib << 20)

    monkeypatch.setattr(processes.shutil, "disk_usage", disk_usage)


def test_without_gpus_there_is_one_process_unless_the_config_says_more() -> None:
    assert find_world(with_settings(), "train_sft", {}) == World(1, 0, 1, None)
    assert find_world(with_settings(num_processes=4), "train_sft", {}).size == 4
    assert World(num_processes=4).torchrun() == ["--standalone", "--nproc-per-node", "4"]


@pytest.mark.parametrize(
    "environ", [{}, {"PET_NPROC_PER_NODE": "auto"}, {"PET_NPROC_PER_NODE": "gpu", "PET_NNODES": "1"}]
)
def test_every_visible_gpu_gets_a_process(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    with_gpus(monkeypatch, 4)
    assert find_world(with_settings(sharding="zero3"), "train_sft", environ).num_processes == 4


def test_second_node_of_a_trainjob_learns_its_place_from_the_environment() -> None:
    world = find_world(with_settings(), "train_sft", SECOND_NODE)
    assert world == World(2, 1, 2, ("judge-node-0-0.judge", 29400))
    assert world.size == 4
    options = world.torchrun()
    pairs = dict(zip(options[::2], options[1::2], strict=True))
    assert pairs == {
        "--nproc-per-node": "2",
        "--nnodes": "2",
        "--node-rank": "1",
        "--master-addr": "judge-node-0-0.judge",
        "--master-port": "29400",
    }


def test_config_overrides_the_number_of_processes_in_the_environment() -> None:
    assert find_world(with_settings(num_processes=1), "train_sft", SECOND_NODE).num_processes == 1


@pytest.mark.parametrize("name", ["PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"])
def test_several_nodes_without_their_environment_are_refused(name: str) -> None:
    environ = {key: value for key, value in SECOND_NODE.items() if key != name}
    with pytest.raises(ConfigError, match=rf"train_sft: PET_NNODES is 2, but {name} is not set; .* by a TrainJob"):
        find_world(with_settings(), "train_sft", environ)


def test_number_of_nodes_that_may_change_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PET_NNODES is '1:4'; expected a whole number"):
        find_world(with_settings(), "train_sft", {**SECOND_NODE, "PET_NNODES": "1:4"})


def test_batch_is_shared_by_the_processes_of_all_nodes() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 3, over all .* each of 2 nodes x 2 processes. Set it to 4"):
        find_world(with_settings(train_batch_size=3), "train_sft", SECOND_NODE)


def test_sharding_over_a_single_process_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sharding is 'zero3', but there is one process: .* Set sharding to 'none'"):
        find_world(with_settings(sharding="zero3"), "train_sft", {})
    assert find_world(with_settings(sharding="zero3", num_processes=1), "train_sft", SECOND_NODE).size == 2


def test_zero_without_deepspeed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda _name: ['no-such-package; extra == "deepspeed"'])
    with pytest.raises(ConfigError, match=r"'deepspeed': no-such-package is missing\. Run: pip install"):
        find_world(with_settings(sharding="zero3", num_processes=2), "train_sft", {})
    assert find_world(with_settings(sharding="fsdp2", num_processes=2), "train_sft", {}).size == 2


@pytest.mark.parametrize(("num_processes", "num_gpus"), [(1, 2), (4, 2)])
def test_one_process_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch, num_processes: int, num_gpus: int) -> None:
    with_gpus(monkeypatch, num_gpus)
    with pytest.raises(
        ConfigError, match=rf"num_processes is {num_processes}, but {num_gpus} GPU.* CUDA_VISIBLE_DEVICES"
    ):
        find_world(with_settings(num_processes=num_processes), "train_sft", {})
    assert find_world(with_settings(num_processes=num_gpus), "train_sft", {}).size == num_gpus


def test_small_shared_memory_is_refused_where_gpu_processes_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2, shared_memory_mib=64)
    with pytest.raises(ConfigError, match=r"train_sft: /dev/shm has 64 MiB; expected at least 1,024 MiB .* emptyDir"):
        find_world(with_settings(), "train_sft", {})
    with_gpus(monkeypatch, 2, shared_memory_mib=1024)
    assert find_world(with_settings(), "train_sft", {}).size == 2
    with_gpus(monkeypatch, 1, shared_memory_mib=64)
    assert find_world(with_settings(), "train_sft", {}).size == 1
