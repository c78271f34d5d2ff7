"""The cpu image, built from local parts without a network, and a task run in it as KFP runs it in a locked-down pod.

Needs root, Debian's docker.io and debootstrap; what is fetched (a base system, wheels) is kept in .cache/container.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasongenrm.components import images
from reasongenrm.components.prepare_pairs.component import prepare_pairs
from reasongenrm.config import ModelConfig
from reasongenrm.data.import_model import import_model
from reasongenrm.store.artifacts import ArtifactRef, Store, read_file
from reasongenrm.store.seaweed import EmbeddedStore
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "container"
BASE = "reasongenrm-test-base:bookworm"
LOCKED_DOWN = [
    "--rm",
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--user",
    "65532:65532",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
]

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]


def run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, text=True, capture_output=True, check=False, **options)
    log = (done.stdout + done.stderr)[-6000:]
    assert done.returncode == 0, f"{command[:4]}: exit code {done.returncode}\n{log}"
    return done.stdout


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dockerd of the test's own: its socket, its data, its mount namespace; no bridge, no firewall rules."""
    if os.getuid() != 0:
        pytest.skip("dockerd wants root")
    missing = [name for name in ("docker", "dockerd", "containerd", "runc", "debootstrap") if not shutil.which(name)]
    if missing:
        pytest.skip(f"not here: {', '.join(missing)}. On Debian: apt-get install docker.io debootstrap")
    folder = tmp_path_factory.mktemp("docker")
    host = f"unix://{folder}/docker.sock"
    command = ["unshare", "--mount", "dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    command += ["--host", host, "--pidfile", f"{folder}/pid", "--bridge", "none", "--iptables=false", "--ip-masq=false"]
    before = os.environ.get("DOCKER_HOST")
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen([*command, "--ip-forward=false"], stdout=log, stderr=log, start_new_session=True)
    try:
        os.environ["DOCKER_HOST"] = host
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "version"], capture_output=True, check=False).returncode != 0:
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.5)
        yield folder
    finally:
        daemon.terminate()
        daemon.wait(60)
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before
        shutil.rmtree(folder / "data", ignore_errors=True)


def base_system() -> Path:
    """A Debian with Python as a tar file."""
    tar = CACHE / "bookworm.tar"
    if not tar.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        system = CACHE / "bookworm"
        shutil.rmtree(system, ignore_errors=True)
        include = "--include=python3,python3-venv,python3-pip,ca-certificates"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", include, "bookworm", str(system)],
            text=True,
            capture_output=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"debootstrap cannot make a base system here: {(made.stdout + made.stderr)[-500:]}")
        packed = ["--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*", "."]
        run("tar", "-C", str(system), "-cf", f"{tar}.partial", *packed)
        Path(f"{tar}.partial").rename(tar)
        shutil.rmtree(system)
    return tar


def wheels() -> Path:
    """What the cpu image installs."""
    folder = CACHE / "wheels"
    for lock in ("cpu/requirements.lock", "build.lock"):
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--dest", str(folder)]
        run(*fetch, "--find-links", str(folder), "-r", str(ROOT / "images" / lock))
    return folder


@pytest.fixture(scope="module")
def image(docker: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cpu image by images/build.sh, from a copy of the tree, with no network at all; it has passed its
    self-check."""
    run("docker", "import", str(base_system()), BASE)
    tree = tmp_path_factory.mktemp(f"tree-of-{docker.name}")
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    shutil.copytree(wheels(), tree / "images" / "wheels")
    (tree / ".env").write_text("AWS_SECRET_ACCESS_KEY=must-not-get-in", encoding="utf-8")
    environment = os.environ | {
        "BUILDER": "docker",
        "DOCKER_BUILDKIT": "0",
        "IMAGES": "cpu",
        "REGISTRY": "local.test/group",
        "BASE": BASE,
        "BUILD_BASE": BASE,
        "PIP_NO_INDEX": "1",
        "BUILD_OPTIONS": "--network none",
        "PYTHON": sys.executable,
    }
    started = time.monotonic()
    output = run("bash", "images/build.sh", cwd=tree, env=environment)
    reference = "local.test/group/" + images.read_table()["cpu"].rpartition("/")[2]
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", reference))
    sys.stdout.write(f"{output[-3000:]}\nbuilt in {time.monotonic() - started:.0f} s, {size / 1e6:.0f} MB\n")
    return reference


def test_self_check_passes_in_a_locked_down_container_and_finds_what_it_should(image: str) -> None:
    started = time.monotonic()
    found = json.loads(
        run("docker", "run", *LOCKED_DOWN, "--network", "none", image, "doctor", "--image", "cpu", "--json")
    )
    sys.stdout.write(f"self-check, container's start included: {time.monotonic() - started:.1f} s\n")
    findings = {finding["name"]: finding for finding in found}
    assert [name for name, finding in findings.items() if finding["needed"] and not finding["ok"]] == []
    assert findings["root file system"]["found"] == "read-only"
    assert findings["user"]["found"] == "uid 65532"
    assert findings["no torch"]["found"] == "absent"


def test_self_check_fails_as_root_and_as_another_image(image: str) -> None:
    as_root = ["docker", "run", "--rm", "--network", "none", "--user", "0:0", image, "doctor", "--image", "cpu"]
    assert subprocess.run(as_root, capture_output=True, check=False).returncode == 1
    as_train = ["docker", "run", *LOCKED_DOWN, "--network", "none", image, "doctor", "--image", "train"]
    assert subprocess.run(as_train, capture_output=True, check=False).returncode == 1


def test_labels_user_and_version_are_those_of_the_build(image: str) -> None:
    config = json.loads(run("docker", "image", "inspect", image))[0]["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert config["User"] == "65532:65532"
    assert labels["version"] == image.rpartition(":")[2]
    assert (labels["title"], labels["licenses"], labels["base.name"]) == ("reasongenrm-cpu", "Apache-2.0", BASE)
    assert all(labels[name] for name in ("description", "revision", "source", "created"))


def test_nothing_of_the_machine_that_built_it_is_inside(image: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    inside = ["docker", "run", "--rm", "--network", "none", "--user", "0:0", "--entrypoint", "grep", image]
    folders = ["/opt", "/home", "/etc", "/root", "/tmp"]
    tree = str(tmp_path_factory.getbasetemp())
    hidden = ["-e", str(ROOT), "-e", tree, "-e", "must-not-get-in"]
    found = subprocess.run([*inside, "-rlaF", *hidden, *folders], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert "/opt/reasongenrm/reasongenrm/errors.py" in run(
        *inside, "-rlaF", "-e", "Every error that a user can meet", *folders
    )


def test_a_task_runs_in_it_as_kfp_runs_it(image: str, store_env: EmbeddedStore, tmp_path: Path) -> None:
    store = Store(f"{store_env.uri}/container")
    ref = import_model(store, ModelConfig(), str(tiny_checkpoint(tmp_path / "model", "chatml")))
    exchange = tmp_path / "exchange"  # the volumes that KFP's launcher shares with the task
    exchange.mkdir()
    exchange.chmod(0o777)
    ref.write(exchange / "base_model")
    shutil.copy2(ROOT / "examples" / "demo" / "preferences.jsonl", exchange)
    section = yaml.safe_load((ROOT / "pipelines" / "configs" / "smoke.yaml").read_text(encoding="utf-8"))["pairs"]
    parameters = {"store_uri": store.uri, "preferences_uri": "/exchange/preferences.jsonl", "config": section}
    given = {
        "inputs": {
            "parameterValues": json.loads(json.dumps(parameters), parse_int=float),
            "artifacts": {"model": artifact("base_model", "system.Model")},
        },
        "outputs": {
            "artifacts": {"prompts": artifact("prompts", "system.Dataset")},
            "outputFile": "/exchange/executor_output.json",
        },
    }
    container = prepare_pairs.component_spec.implementation.container
    command = [*container.command, *container.args]
    command = [json.dumps(given) if part == "{{$}}" else part for part in command]
    assert json.dumps(given) in command
    secret = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")  # reasongenrm-s3's keys
    secrets = [f"--env={name}={store_env.env[name]}" for name in secret if name in store_env.env]
    options = ["--network", "host", "--volume", f"{exchange}:/exchange", *secrets, "--entrypoint", command[0]]
    started = time.monotonic()
    log = run("docker", "run", *LOCKED_DOWN, *options, image, *command[1:])
    sys.stdout.write(f"{log[-2000:]}\nprepare_pairs: {time.monotonic() - started:.1f} s\n")
    prompts = ArtifactRef.read(exchange / "prompts")
    assert prompts.counts == {"num_in": 240, "num_out": 4, "num_dropped_over_limit": 236}
    assert len(read_file(prompts, "prompts.jsonl").splitlines()) == 4
    written = json.loads((exchange / "executor_output.json").read_text(encoding="utf-8"))
    assert written["artifacts"]["prompts"]["artifacts"][0]["metadata"]["digest"] == prompts.digest


def artifact(name: str, kind: str) -> dict[str, Any]:
    """As KFP's launcher describes an artifact to the executor."""
    one = {
        "name": name,
        "type": {"schemaTitle": kind, "schemaVersion": "0.0.1"},
        "uri": f"/exchange/{name}",
        "metadata": {},
    }
    return {"artifacts": [one]}
