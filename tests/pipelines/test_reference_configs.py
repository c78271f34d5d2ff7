"""The reference's rows as configs: its numbers, each with its source, and a cluster run that takes them as they are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.config import RunConfig, load_config
from reasongenrm.runs import kfp
from reasongenrm.runs.references import read_settings, write_settings
from reasongenrm.store.artifacts import Store
from reasongenrm.store.run_records import RunInputs
from tests.kube.fake_kfp import FakeKfp

FOLDER = Path(__file__).parents[2] / "pipelines" / "configs" / "reference"
PATHS = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.stem for path in PATHS]

# docs/method.md, sections 1 to 6, by hand: learning rate, epochs, global batch, maximum length.
TRAININGS = {"genrm": (5e-6, 2.0, 128, 32768), "sft": (5e-6, 2.0, 128, 131072), "dpo": (5e-7, 1.0, 128, 131072)}
MODELS = {
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B-Instruct",
}
# docs/method.md, "Reference results", column Score: Instruct, GenRM, sft, dpo.
PUBLISHED = {
    "llama3.1-8b": ("71.30", "88.76", "82.38", "85.21"),
    "qwen2.5-7b": ("79.78", "88.87", "83.70", "86.88"),
    "qwen2.5-14b": ("82.28", "89.60", "85.89", "88.41"),
}


@pytest.fixture(scope="module", params=PATHS, ids=NAMES)
def config(request: pytest.FixtureRequest) -> RunConfig:
    return load_config(request.param)


def test_there_is_a_config_for_each_of_the_references_models() -> None:
    assert sorted(NAMES) == sorted(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_inputs_are_the_references(name: str) -> None:
    assert load_config(FOLDER / f"{name}.yaml").inputs.model_dump() == {
        "preferences": "Skywork/Skywork-Reward-Preference-80K-v0.2",
        "benchmark": "allenai/reward-bench",
        "model": MODELS[name],
        "teacher": "meta-llama/Llama-3.1-70B-Instruct",
    }


@pytest.mark.parametrize("name", sorted(MODELS))
def test_head_says_what_was_published(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    found = re.search(r"Instruct ([\d.]+), GenRM ([\d.]+), sft ([\d.]+), dpo ([\d.]+)\.", text)
    assert found
    assert found.groups() == PUBLISHED[name]


@pytest.mark.parametrize("variant", sorted(TRAININGS))
def test_trainings_have_the_references_numbers(config: RunConfig, variant: str) -> None:
    section: Any = config.stages()[variant]
    found = (section.learning_rate, section.num_train_epochs, section.train_batch_size, section.max_length)
    assert found == TRAININGS[variant]
    assert (section.dtype, section.sharding) == ("bfloat16", "zero3")


def test_generation_selection_and_dpo_have_the_references_numbers(config: RunConfig) -> None:
    for section in (config.distill, config.sample):
        assert (section.num_samples, section.temperature, section.top_p, section.max_tokens) == (16, 1.0, 1.0, 8192)
    assert (config.select.formula, config.select.min_score) == ("signed", 0.1)
    assert (config.preferences.chosen_above, config.preferences.rejected_below) == (0.1, -0.1)
    assert config.preferences.strategy == "correct_fluent+incorrect_fluent"
    assert (config.dpo.beta, config.dpo.loss_type) == (0.1, "sigmoid")
    assert (config.evaluate.votes, config.evaluate.max_tokens) == (1, 8192)
    assert config.pairs.order == "random"


def test_a_teacher_of_70b_fits_on_its_accelerators(config: RunConfig) -> None:
    # 70.6e9 parameters x 2 bytes = 141 GB: more than one GPU of 80 GB, and more than a pod's usual 64Gi of page cache.
    assert config.distill.engine.tensor_parallel_size == 4
    assert config.resources.num_teacher_accelerators % 4 == 0
    assert config.resources.accelerator_memory == "192Gi"


def settings(path: Path) -> Iterator[tuple[str, str]]:
    """Each line of a config that gives a value, and its comment."""
    for line in path.read_text(encoding="utf-8").splitlines():
        content, _, comment = line.partition(" # ")
        value = content.partition(":")[2].strip()
        if content.strip() and not content.startswith("#") and value and not value.startswith(("&", "*")):
            yield content.strip(), comment


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_number_has_its_source_on_its_line(path: Path) -> None:
    found = dict(settings(path))
    assert len(found) > 30
    source = re.compile(r"(R|G|GenRM)/\S+\.(sh|py|md)\b|(computed|ours): ")
    assert [content for content, comment in found.items() if not source.match(comment)] == []


def test_values_that_come_from_an_anchor_are_those_meant() -> None:
    values = yaml.safe_load(PATHS[0].read_text(encoding="utf-8"))
    assert values["sample"]["engine"] == values["evaluate"]["engine"]
    assert values["sample"]["engine"]["tensor_parallel_size"] == 1
    assert values["sample"]["engine"]["max_model_len"] == 32768


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKfp]:
    with FakeKfp().running() as fake:
        yield fake


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_compiled_pipeline_takes_the_config_as_it_is(
    server: FakeKfp, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(kfp.TOKEN_PATH_ENV, str(tmp_path / "none"))
    arguments = ["submit", "--config", str(path), "--store", "s3://judges/runs", "--host", server.url, "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    given = server.runs[json.loads(result.stdout)["run_id"]].body["runtime_config"]["parameters"]
    assert given["model_uri"] == MODELS[path.stem]
    taken = write_settings(store, RunInputs(**{name: given[name] for name in RunInputs.model_fields}), given["config"])
    assert read_settings(taken).stages.stages() == load_config(path).stages()


def test_every_training_is_sharded_as_the_references(config: RunConfig) -> None:
    assert {section.sharding for section in (config.genrm, config.sft, config.dpo)} == {"zero3"}
    assert config.resources.num_train_accelerators > 1  # one process would have nothing to share
