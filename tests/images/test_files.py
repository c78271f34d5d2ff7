"""The files that images are made of: linted, pinned, and in step with pyproject.toml and the table of images."""

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from reasongenrm.cli.doctor import IMAGES as HELD

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
SCRIPTS = Path(sysconfig.get_path("scripts"))
SHELL = [*sorted(IMAGES.glob("*.sh")), IMAGES / "triton" / "prebuild.sh", IMAGES / "triton" / "triton-cc"]


def lint(tool: str, path: Path, *options: str) -> tuple[int, str]:
    done = subprocess.run([SCRIPTS / tool, *options, str(path)], cwd=ROOT, text=True, capture_output=True, check=False)
    return done.returncode, done.stdout + done.stderr


def locked(name: str) -> dict[str, str]:
    """Package -> version in all lock files of an image."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((IMAGES / name).glob("*.lock")))
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", HELD)
def test_hadolint_finds_nothing_and_would_find_an_unpinned_base(name: str, tmp_path: Path) -> None:
    dockerfile = IMAGES / name / "Dockerfile"
    assert lint("hadolint", dockerfile) == (0, "")
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text(dockerfile.read_text().replace("FROM ${BASE}", "FROM debian:latest"), encoding="utf-8")
    code, found = lint("hadolint", spoilt)
    assert (code, "DL3007" in found) == (1, True)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_and_would_find_an_unquoted_variable(script: Path, tmp_path: Path) -> None:
    assert lint("shellcheck", script, "-x") == (0, "")
    spoilt = tmp_path / script.name
    spoilt.write_text(script.read_text() + "\ncd $HOME/$nothing\n", encoding="utf-8")
    assert lint("shellcheck", spoilt, "-x")[0] == 1


@pytest.mark.parametrize("name", HELD)
def test_lock_has_what_the_extras_ask_for(name: str) -> None:
    found = locked(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in HELD[name].extras for text in project["optional-dependencies"][extra]]
    of_image = [Requirement(text) for text in [*project["dependencies"], *extras]]
    unfit = [one for one in of_image if not one.specifier.contains(found[one.name.lower()].split("+")[0])]
    assert unfit == []


@pytest.mark.parametrize("name", ["cpu", "train"])
def test_image_has_the_versions_that_the_tests_run_with(name: str) -> None:
    tested = dict(re.findall(r"^(\S+?)==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    differing = {package for package, version in locked(name).items() if tested.get(package, version) != version}
    assert differing - {"torch"} == set()


def test_cuda_build_of_the_train_image_has_ligers_kernels() -> None:
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["liger"]
    assert re.search(rf"^{re.escape(wanted)} ", (IMAGES / "train" / "torch-cuda.lock").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("lock", sorted(IMAGES.rglob("*.lock")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_locked_package_has_a_hash_and_no_place(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    packages = len(re.findall(r"^\S+==", text, flags=re.MULTILINE))
    hashed = len(re.findall(r"^\S+==.*\\\n +--hash=sha256:", text, flags=re.MULTILINE))
    assert packages > 0
    assert hashed == (0 if lock.name == "torch-cpu.lock" else packages)


@pytest.mark.parametrize("name", HELD)
def test_dockerfile_drops_root_pins_bases_and_keeps_caches_below_tmp(name: str) -> None:
    text = (IMAGES / name / "Dockerfile").read_text(encoding="utf-8")
    final = text.rpartition("\nFROM ")[2]
    assert "\nUSER 65532:65532\n" in final
    assert "--mount" not in text  # the classic builder knows none
    assert all(re.search(r"python:3\.11\.\d+-", base) for base in re.findall(r"^ARG (?:BUILD_)?BASE=(\S+)", text, re.M))
    assert all(f"{variable}=/tmp/" in final for variable in HELD[name].caches)


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """images/build.sh where docker is a script that notes what it is asked, and nothing else builds."""
    tools = tmp_path / "bin"
    tools.mkdir()
    fake = tools / "docker"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n', encoding="utf-8")
    fake.chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    given = {"PATH": path, "PYTHON": sys.executable, "HOME": str(tmp_path)} | environment
    command = ["bash", str(IMAGES / "build.sh")]
    return subprocess.run(command, env=given, text=True, capture_output=True, check=False)


def test_build_checks_each_image_before_it_pushes_it(tmp_path: Path) -> None:
    done = build(tmp_path, IMAGES="cpu vllm", REGISTRY="registry.test/judges/", PUSH="1")
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    verbs = [line.split()[0] for line in asked]
    assert verbs == ["buildx", "buildx", "run", "push", "buildx", "run", "push"]
    assert "--file images/cpu/Dockerfile --tag registry.test/judges/reasongenrm-cpu:" in asked[1]
    assert "--read-only" in asked[2]
    assert asked[2].endswith("doctor --image cpu")
    assert asked[6].startswith("push registry.test/judges/reasongenrm-vllm:")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"IMAGES": "gpu"}, "IMAGES has 'gpu'; expected some of: cpu train vllm"),
        ({"TORCH": "rocm"}, "TORCH is 'rocm'; expected cuda or cpu"),
        ({"TORCH": "cpu"}, "TORCH=cpu: found no CPU build of torch"),
        ({"PATH": "/nowhere"}, "found neither docker buildx, podman nor buildah"),
        ({"BUILDER": "make"}, "BUILDER is 'make'; expected buildx, podman, buildah or docker"),
    ],
)
def test_build_says_what_is_wrong_before_it_builds(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    if "PATH" in environment:  # everything that the script itself needs, and no builder
        tools = tmp_path / "few"
        tools.mkdir()
        for tool in ("bash", "dirname", "cat"):
            (tools / tool).symlink_to(f"/usr/bin/{tool}")
        environment = environment | {"PATH": str(tools)}
        (tools / "bash").unlink()
        command = ["/usr/bin/bash", str(IMAGES / "build.sh")]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    else:
        done = build(tmp_path, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "asked").exists() or "build " not in (tmp_path / "asked").read_text()


def triton_cc(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(environment / "bin" / "triton-cc"), *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def test_what_stands_for_a_compiler_hands_out_only_what_was_compiled_with_the_image(tmp_path: Path) -> None:
    for folder in ("bin", "lib/triton-cc"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin" / "triton-cc").write_bytes((IMAGES / "triton" / "triton-cc").read_bytes())
    (tmp_path / "bin" / "triton-cc").chmod(0o755)
    (tmp_path / "lib" / "triton-cc" / "cuda_utils.so").write_bytes(b"compiled")
    source = tmp_path / "cuda_utils.c"
    source.write_text("int x;\n", encoding="utf-8")
    # sha256 of "int x;\n"
    digest = subprocess.run(["sha256sum", str(source)], text=True, capture_output=True, check=True).stdout.split()[0]
    (tmp_path / "lib" / "triton-cc" / "source.sha256").write_text(digest + "\n", encoding="utf-8")
    made = tmp_path / "made.so"
    assert triton_cc(tmp_path, str(source), "-O3", "-shared", "-o", str(made)).returncode == 0
    assert made.read_bytes() == b"compiled"
    source.write_text("int y;\n", encoding="utf-8")
    refused = triton_cc(tmp_path, str(source), "-O3", "-shared", "-o", str(tmp_path / "other.so"))
    assert refused.returncode == 1
    assert "this image has no compiler" in refused.stderr
    assert not (tmp_path / "other.so").exists()
