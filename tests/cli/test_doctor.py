"""The doctor of machines and of images: each thing that can be wrong is found, and names what to do."""

import importlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reasongenrm.cli import app, doctor
from reasongenrm.cli.doctor import IMAGES, examine, examine_image
from reasongenrm.components import images
from reasongenrm.processes import extras
from reasongenrm.store.artifacts import Store
from tests.kube.pods import containers, pod_specs
from tests.manifests import rendered
from tests.manifests.example import example

COMPONENTS = Path(__file__).parents[2] / "components"


def test_every_adapter_of_an_image_is_checked_in_that_image() -> None:
    of_image: dict[str, set[str]] = {name: set() for name in images.NAMES}
    for path in COMPONENTS.glob("*/component.py"):
        name = path.parent.name
        component = vars(importlib.import_module(f"reasongenrm.components.{name}.component"))[name]
        reference = component.component_spec.implementation.container.image
        image = next(key for key, each in images.read_table().items() if each == reference)
        # "Adapter of reasongenrm.a.b.stage and reasongenrm.a.c.stage, which ...": what it calls, in its first line.
        first = path.read_text(encoding="utf-8").splitlines()[0].partition(", which")[0]
        of_image[image] |= {stage.rstrip(".") for stage in re.findall(r"reasongenrm\.([\w.]+)", first)}
    assert {name: set(image.stages) for name, image in IMAGES.items()} == of_image
    for stage in set.union(*of_image.values()):
        module, _, function = stage.rpartition(".")
        assert callable(getattr(importlib.import_module(f"reasongenrm.{module}"), function))


def test_every_command_that_a_pod_of_an_image_runs_is_checked_in_that_image() -> None:
    run: dict[str, set[str]] = {name: set() for name in images.NAMES}
    of_image = {reference: name for name, reference in images.read_table().items()}
    for item in [*rendered("production"), *rendered("kind"), example()]:
        for _, spec, _ in pod_specs(item):
            for _, container in containers(spec):
                match container.get("command"):
                    case ["reasongenrm", command, *_]:
                        run[of_image[container["image"]]].add(command)
    assert {name: set(image.commands) for name, image in IMAGES.items()} == run


def test_command_that_is_not_there_is_found() -> None:
    assert doctor._command("judge-server", ["doctor", "judge-server"]).ok
    assert not doctor._command("judge-servant", ["doctor", "judge-server"]).ok


def test_this_environment_is_no_cpu_image_and_the_check_says_where() -> None:
    findings = {finding.name: finding for finding in examine_image("cpu", ["judge-server", "web"])}
    assert findings["version"].ok
    assert findings["stage evaluation.gate.select_winner"].ok
    assert (findings["no torch"].ok, findings["no vllm"].ok) == (False, True)
    assert all(finding.ok != bool(finding.advice) for finding in findings.values())


def test_a_stage_that_is_not_there_and_a_missing_package_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("data.pairs.no_such_stage", "nowhere.stage")
    monkeypatch.setitem(IMAGES, "cpu", replace(IMAGES["cpu"], stages=stages, lazy=("no_such_package",)))
    wrong = {
        finding.name: finding.found
        for finding in examine_image("cpu", ["judge-server", "web"])
        if not finding.ok and finding.needed
    }
    assert "KeyError" in wrong["stage data.pairs.no_such_stage"]
    assert "ModuleNotFoundError" in wrong["stage nowhere.stage"]
    assert "no_such_package" in wrong["import no_such_package"]


def test_s3_variables_that_cannot_be_used_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary\n")
    found = [finding for finding in doctor.examine("S3://bucket") if not finding.ok]
    said = {finding.advice for finding in found if finding.name == "S3 settings"}
    assert len(said) == 2
    assert any("Type AWS_ENDPOINT_URL=http://localhost:9000, or https://." in advice for advice in said)
    assert any("AWS_SECRET_ACCESS_KEY holds a line break" in advice for advice in said)
    (store,) = [finding for finding in found if finding.name == "store"]
    assert "Type s3://bucket." in store.advice
    assert "canary" not in str(found)


def test_version_that_is_not_the_tag_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "__version__", "9.9.9")
    found = doctor._image_version("cpu")
    assert not found.ok
    assert found.found.startswith("9.9.9, installed as 0.")


@pytest.mark.parametrize("uid", [0, 65532])
def test_root_is_told_from_another_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    findings = {finding.name: finding for finding in examine_image("cpu", [])}
    assert (findings["user"].ok, findings["user"].found) == (uid != 0, f"uid {uid}")


def test_compiler_on_the_path_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._no_compiler().ok
    (tmp_path / "gcc").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "gcc").chmod(0o755)
    assert doctor._no_compiler().found == str(tmp_path / "gcc")


@pytest.mark.skipif(os.getuid() != 0, reason="the files of this machine are closed to other users")
def test_root_file_system_that_this_user_can_write_is_found() -> None:
    assert not doctor._root().ok


def test_cache_must_be_set_below_tmp_and_be_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    assert not doctor._cache("HF_HOME").ok
    monkeypatch.setenv("HF_HOME", "/home/reasongenrm/.cache")
    assert "below /tmp" in doctor._cache("HF_HOME").advice
    monkeypatch.setenv("HF_HOME", f"/tmp/reasongenrm-test-{os.getpid()}")
    assert doctor._cache("HF_HOME").ok
    Path(f"/tmp/reasongenrm-test-{os.getpid()}").rmdir()
    assert not doctor._writable("proc", Path("/proc/nothing")).ok


def test_small_shared_memory_is_named_and_no_error() -> None:
    assert doctor._shared_memory(0).ok
    small = doctor._shared_memory(10**9)
    assert (small.ok, small.needed) == (False, False)
    assert "emptyDir" in small.advice


def test_command_prints_json_and_fails_outside_an_image() -> None:
    result = CliRunner().invoke(app, ["doctor", "--image", "cpu", "--json"])
    assert result.exit_code == 1
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert {"version", "user", "no compiler"} <= findings.keys()
    assert findings["command judge-server"]["ok"]  # told from the program itself


def test_command_refuses_an_unknown_image() -> None:
    result = CliRunner().invoke(app, ["doctor", "--image", "gpu"])
    assert result.exit_code != 0
    assert "expected one of cpu, train, vllm" in str(result.exception) + result.output


def test_findings_say_what_to_do_exactly_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = ['no-such-package>=2; extra == "train"', 'pytest>=1; extra == "local"']
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda _name: metadata)
    findings = {finding.name: finding for finding in examine()}
    assert not findings["extra 'train'"].ok
    assert "pip install 'reasongenrm[train]'" in findings["extra 'train'"].advice
    assert findings["extra 'local'"].ok
    assert all(finding.ok != bool(finding.advice) for finding in findings.values())
    assert {name for name, finding in findings.items() if not finding.needed} == {
        "extra 'vllm'",
        "extra 'deepspeed'",
        "extra 'liger'",
        "extra 'mlflow'",
        "SmolLM2-135M-Instruct",
        "NVIDIA GPU",
    }


def test_disk_is_that_of_the_stores_folder_to_be(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in examine(str(tmp_path / "not" / "yet"))}
    assert findings["disk"].found.endswith(f"GiB free at {tmp_path}")


def test_store_that_answers_is_told_from_one_that_does_not(store: Store) -> None:
    assert examine(store.uri)[-1].ok
    other = examine("s3://no-such-bucket-here/prefix")[-1]
    assert (other.name, other.ok, other.needed) == ("store", False, True)
    assert "no-such-bucket-here" in other.advice
