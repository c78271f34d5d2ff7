"""The kind scripts as real bash processes, with recorders in place of kind, docker, kubectl and make.

What they cannot show: that the cluster comes up. `make kind-up kind-e2e kind-down` does, on a machine with docker and
kind.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.components.images import read_table
from reasongenrm.config import DeployConfig, load_config
from reasongenrm.deploy.preflight import check_settings
from tests.kube.fake_kfp import FakeKfp
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
KIND = ROOT / "manifests" / "kind"
SCRIPTS = sorted(KIND.glob("*.sh"))
VERSIONS = dict(
    line.split("=", 1) for line in (KIND / "versions.env").read_text().splitlines() if "=" in line and line[0] != "#"
)
TOOLS = [
    "bash",
    "env",
    "timeout",
    "awk",
    "grep",
    "df",
    "head",
    "tail",
    "base64",
    "tr",
    "mktemp",
    "rm",
    "date",
    "dirname",
    "cat",
    "curl",
    "sh",
]
STUBS = ["kind", "docker", "kubectl", "make", "git", "sleep"]
ANSWERS: list[Any] = [
    ["^docker info --format .*NCPU", {"out": "3"}],
    ["^docker info --format .*MemTotal", {"out": str(16 * 2**30)}],
    ["^docker info --format .*DockerRootDir", {"out": "/nowhere"}],
    [r"^kind version", {"out": f"kind {VERSIONS['KIND_VERSION']} go1.24.6 linux/amd64\n"}],
]


class Machine:
    """A PATH with recorders, and what they recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        (folder / "scratch").mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        stub = (
            Path(__file__)
            .with_name("stub.sh")
            .read_text()
            .replace("#!/usr/bin/env bash", f"#!{shutil.which('bash')}", 1)
        )
        for name in STUBS:
            (self.bin / name).write_text(stub)
            (self.bin / name).chmod(0o755)
        (folder / "clusters").write_text("")
        self.rules: list[Any] = []

    def run(self, script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        lines = []
        for number, (pattern, answer) in enumerate([*self.rules, *ANSWERS], start=1):
            output = self.folder / f"output-{number}"
            output.write_text(answer.get("out", ""))
            (self.folder / f"used-{number}").unlink(missing_ok=True)
            lines.append(f"{pattern}\t{answer.get('code', 0)}\t{answer.get('times', 10**6)}\t{output}\n")
        (self.folder / "rules").write_text("".join(lines))
        (self.folder / "calls").write_text("")
        env = {"PATH": str(self.bin), "STUB_FOLDER": str(self.folder), "TMPDIR": str(self.folder / "scratch")}
        env |= {"TORCH_INDEX": "https://torch.example/cpu", "HOME": str(self.folder), **environment}
        command = [str(self.bin / "bash"), str(KIND / script)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)

    def recorded(self) -> list[tuple[str, list[str], str]]:
        """Name, arguments and standard input of each call, in order."""
        found = []
        for record in (self.folder / "calls").read_text().split("\x1d")[:-1]:
            call, text = record.split("\x1e")
            name, *arguments = call.split("\x1f")
            found.append((name, arguments, text))
        return found

    def calls(self, name: str = "") -> list[str]:
        """Calls as lines, without the context that every kubectl call has and without our own folder."""
        joined = [" ".join([called, *arguments]) for called, arguments, _ in self.recorded() if name in ("", called)]
        return [line.replace(" --context kind-reasongenrm", "").replace(f"{ROOT}/", "") for line in joined]

    def inputs(self) -> list[tuple[str, str]]:
        """Arguments and standard input of the calls that were given any."""
        return [(" ".join(arguments), text) for _, arguments, text in self.recorded() if text]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def order(calls: list[str], *parts: str) -> None:
    """Each part is in a call after that of the part before."""
    place = -1
    for part in parts:
        found = [number for number, call in enumerate(calls) if number > place and part in call]
        assert found, f"no call with {part!r} after {calls[place] if place >= 0 else 'the start'!r}:\n" + "\n".join(
            calls
        )
        place = found[0]


def test_up_installs_in_the_order_that_was_found_to_work(machine: Machine) -> None:
    ended = machine.run("up.sh")
    assert ended.returncode == 0, ended.stderr
    order(
        machine.calls(),
        "docker info",
        "kind version",
        f"kind create cluster --name reasongenrm --image {VERSIONS['NODE_IMAGE']} --config manifests/kind/cluster.yaml",
        "make -C",
        f"kind load docker-image {read_table()['cpu']} --name reasongenrm",
        f"kind load docker-image {read_table()['train']} --name reasongenrm",
        "apply -k manifests/third-party/cert-manager",
        "-n cert-manager rollout status deployment/cert-manager-webhook",
        "apply -k manifests/third-party/kfp/cluster-scoped",
        "wait crd/applications.app.k8s.io --for=condition=established",
        "apply -k manifests/kind/kfp",
        "-n kubeflow rollout status deployment/mysql --timeout=600s",
        "rollout status deployment/metadata-grpc-deployment",
        "rollout status deployment/ml-pipeline",
        "apply -k manifests/third-party/kserve/crds --server-side",
        "apply -k manifests/third-party/kserve --server-side",
        "-n kserve rollout status deployment/kserve-controller-manager",
        "apply -k manifests/third-party/kserve/runtimes",
        "create secret generic reasongenrm-s3",
        "apply -k manifests/overlays/kind --server-side --field-manager=reasongenrm --force-conflicts",
        "-n reasongenrm rollout status statefulset/reasongenrm-object-store",
        "wait job/reasongenrm-bucket --for=condition=complete",
    )
    assert "trainer" not in " ".join(machine.calls())
    assert re.search(r"\[ +\d+:\d\d\] ready\. Next: make kind-e2e", ended.stderr)
    kubectl = [arguments for name, arguments, _ in machine.recorded() if name == "kubectl"]
    assert len(kubectl) > 20
    assert all(arguments[:2] == ["--context", "kind-reasongenrm"] for arguments in kubectl)


def test_every_kubectl_call_has_a_time_limit() -> None:
    for script in SCRIPTS:  # an own limit, or a client-side command that reaches nothing
        for line in script.read_text().replace("\\\n", " ").splitlines():
            if '"${kubectl[@]}"' in line and not line.lstrip().startswith("#"):
                assert re.search(r"within|--dry-run=client|port-forward", line), f"{script.name}: {line}"


def test_trainer_comes_after_jobset_when_it_is_asked_for(machine: Machine) -> None:
    assert machine.run("up.sh", TRAINER="1").returncode == 0
    order(
        machine.calls(),
        "third-party/kserve/runtimes",
        "third-party/jobset",
        "third-party/trainer",
        "overlays/kind-with-trainer ",
    )


def test_up_again_makes_no_second_cluster_and_keeps_the_credentials(machine: Machine) -> None:
    assert machine.run("up.sh").returncode == 0
    first = dict(machine.inputs())
    made = "".join(first.values())
    key = re.search("AWS_SECRET_ACCESS_KEY=(.{40})\n", made)
    assert key
    kept = base64.b64encode(key[1].encode()).decode()
    machine.rules = [[r"get secret reasongenrm-s3 .*AWS_SECRET_ACCESS_KEY", {"out": kept}]]
    machine.rules += [
        [r"get secret reasongenrm-s3 .*AWS_ACCESS_KEY_ID", {"out": base64.b64encode(b"kept-id").decode()}]
    ]
    again = machine.run("up.sh", SKIP_BUILD="1")
    assert again.returncode == 0
    assert not [call for call in machine.calls() if call.startswith(("kind create", "make"))]
    written = "".join(text for _, text in machine.inputs())
    assert f"AWS_ACCESS_KEY_ID=kept-id\nAWS_SECRET_ACCESS_KEY={key[1]}\n" in written
    assert "with the values that are there" in again.stderr
    assert key[1] not in again.stderr + " ".join(machine.calls())


def test_credentials_are_new_each_time_and_never_an_argument(machine: Machine) -> None:
    words = []
    for _ in range(2):
        ended = machine.run("up.sh")
        text = "".join(text for _, text in machine.inputs())
        found = re.findall(
            r"^(?:AWS_SECRET_ACCESS_KEY|VLLM_API_KEY|JUDGE_API_KEY)=([A-Za-z0-9]{40})$", text, re.MULTILINE
        )
        assert len(found) == 6  # three keys in two namespaces
        assert len(set(found)) == 3
        accounts = [json.loads(text) for arguments, text in machine.inputs() if "reasongenrm-object-store" in arguments]
        assert accounts[0]["identities"][0]["credentials"][0]["secretKey"] in found
        words += found
        assert not any(word in ended.stderr + ended.stdout + " ".join(machine.calls()) for word in found)
    assert len(set(words)) == 6


def test_webhook_that_refuses_at_first_is_asked_again_with_a_pause(machine: Machine) -> None:
    machine.rules = [["apply -k .*/kserve/runtimes", {"code": 1, "times": 3}]]
    ended = machine.run("up.sh")
    assert ended.returncode == 0
    assert len([call for call in machine.calls("kubectl") if "kserve/runtimes" in call]) == 4
    assert machine.calls("sleep") == ["sleep 5"] * 3
    assert "attempt 3 of 12 failed; again in 5 s" in ended.stderr


def test_what_never_works_is_given_up_shown_and_left_to_read(machine: Machine) -> None:
    machine.rules = [
        ["apply -k .*/kserve/runtimes", {"code": 1}],
        [
            "get pods -A --no-headers",
            {"out": "kserve sick-1 0/1 CrashLoopBackOff 3 1m\nkserve well-1 1/1 Running 0 1m\n"},
        ],
    ]
    ended = machine.run("up.sh")
    assert ended.returncode == 1
    assert len([call for call in machine.calls("kubectl") if "kserve/runtimes" in call]) == 12
    assert "failed: KServe's runtimes could not be applied." in ended.stderr
    assert "'make kind-up' goes on from here, 'make kind-down' removes everything." in ended.stderr
    order(
        machine.calls(),
        "get pods -A -o wide",
        "get events -A",
        "-n kserve describe pod sick-1",
        "-n kserve logs sick-1",
    )
    assert not [
        call for call in machine.calls() if "well-1" in call or "overlays/kind" in call or "kind delete" in call
    ]


def test_deployment_that_does_not_come_up_is_named(machine: Machine) -> None:
    machine.rules = [["rollout status deployment/mysql", {"code": 1}]]
    ended = machine.run("up.sh")
    assert (ended.returncode, "deployment/mysql in kubeflow did not become ready in 600 s." in ended.stderr) == (
        1,
        True,
    )


def test_cluster_that_cannot_be_made_leaves_nothing_to_look_at(machine: Machine) -> None:
    machine.rules = [["^kind create", {"code": 1}]]
    ended = machine.run("up.sh")
    assert (ended.returncode, "kind could not create the cluster" in ended.stderr) == (1, True)
    assert machine.calls("kubectl") == []


@pytest.mark.parametrize(
    ("missing", "script", "message"),
    [
        ("docker", "up.sh", "up.sh: docker is not installed. Install Docker Engine"),
        (
            "kind",
            "up.sh",
            f"kind is not installed. Get {VERSIONS['KIND_VERSION']}: https://github.com/kubernetes-sigs/kind",
        ),
        ("git", "up.sh", "git is not installed. kubectl fetches"),
        ("timeout", "up.sh", "timeout is not installed. It is part of coreutils"),
        ("kind", "e2e.sh", "kind is not installed."),
        ("curl", "e2e.sh", "curl is not installed."),
        ("docker", "down.sh", "docker is not installed."),
    ],
)
def test_missing_tool_is_named_with_how_to_get_it(machine: Machine, missing: str, script: str, message: str) -> None:
    (machine.bin / missing).unlink()
    ended = machine.run(script)
    assert (ended.returncode, message in ended.stderr, len(ended.stderr.splitlines())) == (2, True, 1), ended.stderr
    assert not [call for call in machine.calls() if "create" in call]


@pytest.mark.parametrize(
    ("rule", "environment", "message"),
    [
        (["^docker info$", {"code": 1}], {}, "the Docker daemon does not answer"),
        (["^kind version", {"out": "kind v0.29.0 go1.24.2 linux/amd64\n"}], {}, "expected kind v0.30.0"),
        (["^docker info --format .*MemTotal", {"out": str(5 * 2**30)}], {}, "5120 MiB of memory; expected 6 GiB"),
        (["^docker info --format .*NCPU", {"out": "1"}], {}, "docker has 1 CPUs; expected 2, for which the pods ask."),
        (["^docker info --format .*NCPU", {"out": "2"}], {"TRAINER": "1"}, "docker has 2 CPUs; expected 3"),
        (["^nothing", {}], {"TORCH_INDEX": ""}, "TORCH_INDEX is not set."),
    ],
)
def test_machine_that_will_not_do_is_refused_before_anything_is_made(
    machine: Machine, rule: list[Any], environment: dict[str, str], message: str
) -> None:
    if list(ROOT.glob("images/wheels/torch-*")) and environment:
        pytest.skip("a torch wheel lies in images/wheels, so TORCH_INDEX is not needed here")
    machine.rules = [rule]
    ended = machine.run("up.sh", **environment)
    assert (ended.returncode, message in ended.stderr) == (2, True), ended.stderr
    assert not [call for call in machine.calls() if call.startswith(("kind create", "kubectl", "make"))]


def test_two_cores_and_six_gib_will_do(machine: Machine) -> None:
    shown = 6 * 2**30 - 200 * 2**20  # a machine of 6 GiB shows a little less
    machine.rules = [["MemTotal", {"out": str(shown)}], ["NCPU", {"out": "2"}]]
    ended = machine.run("up.sh")
    assert ended.returncode == 0, ended.stderr


def test_full_disk_is_refused(machine: Machine) -> None:
    machine.rules = [[r"DockerRootDir", {"out": "/"}]]
    (machine.bin / "df").unlink()
    (machine.bin / "df").write_text('#!/bin/sh\necho "Filesystem 1024-blocks Used Available Capacity Mounted"\n'
                                    'echo "/dev/x 9 9 10485760 9% /"\n')  # fmt: skip
    (machine.bin / "df").chmod(0o755)
    ended = machine.run("up.sh")
    assert (ended.returncode, "10 GiB are free at /; expected 30 GiB" in ended.stderr) == (2, True)


def test_down_removes_our_cluster_only_and_does_nothing_the_second_time(machine: Machine) -> None:
    (machine.folder / "clusters").write_text("other\nreasongenrm\n")
    assert machine.run("down.sh").returncode == 0
    assert [call for call in machine.calls("kind") if "delete" in call] == ["kind delete cluster --name reasongenrm"]
    again = machine.run("down.sh")
    assert (again.returncode, "there is no kind cluster 'reasongenrm'" in again.stderr) == (0, True)
    assert not [call for call in machine.calls() if "delete" in call]


def test_e2e_without_a_cluster_says_how_to_make_one(machine: Machine) -> None:
    (machine.folder / "clusters").write_text("reasongenrm-2\n")
    ended = machine.run("e2e.sh")
    assert (ended.returncode, ended.stderr) == (
        2,
        "e2e.sh: there is no kind cluster 'reasongenrm'. Run: make kind-up\n",
    )


@pytest.fixture
def kfp() -> Iterator[FakeKfp]:
    """KFP's API server, whose runs end well at once."""
    with FakeKfp().running() as fake:
        fake.on_get = lambda run: setattr(run, "state", "SUCCEEDED")
        yield fake


def port_of(kfp: FakeKfp) -> str:
    return kfp.url.rsplit(":", 1)[1].strip("/")


def submitting(machine: Machine, code: int) -> str:
    """A Python whose `reasongenrm submit` is recorded instead of run and ends with `code`; everything else is this
    one's."""
    python = machine.folder / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$3" = submit ]; then shift 3; echo "$@" > {machine.folder}/submitted; exit {code}; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    (machine.folder / "clusters").write_text("reasongenrm\n")
    return str(python)


def forwards_left(machine: Machine) -> list[str]:
    """Processes that a script of this test left running."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        if (process.info["environ"] or {}).get("STUB_FOLDER") == str(machine.folder):
            found.append(" ".join(process.info["cmdline"] or ()))
    return found


def wait_gone(machine: Machine) -> None:
    for _ in range(50):
        if not forwards_left(machine):
            return
        time.sleep(0.1)
    assert forwards_left(machine) == []


@pytest.mark.slow
def test_e2e_runs_the_pipeline_and_reads_the_judges_answer(
    machine: Machine, kfp: FakeKfp, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # In place of the InferenceService: the same servers that its pods run, with a key, on a random checkpoint.
    model = tiny_checkpoint(tmp_path_factory.mktemp("served") / "model", "chatml", opening_role="reason")
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    behind, port = ports
    us = [sys.executable, "-m", "reasongenrm"]
    commands = [
        [*us, "serve", "--model", str(model), "--port", behind, "--max-model-len=4096"],
        [*us, "judge-server", "--predictor", f"http://127.0.0.1:{behind}/v1", "--port", port],
    ]
    log = (machine.folder / "server.log").open("w")
    keys = {"VLLM_API_KEY": "secret", "JUDGE_API_KEY": "secret"}
    servers = [subprocess.Popen(one, env={**os.environ, **keys}, stdout=log, stderr=log) for one in commands]
    try:
        key = base64.b64encode(b"secret").decode()
        machine.rules = [["get secret reasongenrm-judge", {"out": key}]]
        (machine.bin / "sleep").unlink()
        (machine.bin / "sleep").symlink_to(str(shutil.which("sleep")))  # until the server has started
        (machine.folder / "clusters").write_text("reasongenrm\n")
        python = sys.executable
        passed = machine.run("e2e.sh", PYTHON_BIN=python, KFP_PORT=port_of(kfp), JUDGE_PORT=port)
        assert passed.returncode == 0, passed.stderr
        assert "reason (swapped): " in passed.stdout
        assert "the judge answers. Done." in passed.stderr
        calls = machine.calls("kubectl")
        order(
            calls,
            "delete job reasongenrm-smoke-inputs",
            "apply -k manifests/kind/smoke-inputs",
            "wait job/reasongenrm-smoke-inputs",
        )
        order(
            calls,
            "port-forward --address 127.0.0.1 svc/ml-pipeline",
            f"port-forward --address 127.0.0.1 svc/reasongenrm {port}:80",
        )
        assert next(iter(kfp.runs.values())).body["display_name"].startswith("smoke-")
        assert "secret" not in passed.stdout + passed.stderr.replace("get secret", "")
        wait_gone(machine)
        assert list((machine.folder / "scratch").iterdir()) == []

        machine.rules = [["get secret reasongenrm-judge", {"out": base64.b64encode(b"wrong").decode()}]]
        refused = machine.run("e2e.sh", PYTHON_BIN=python, KFP_PORT=port_of(kfp), JUDGE_PORT=port)
        assert (refused.returncode, "the judge answered HTTP 401" in refused.stderr) == (1, True), refused.stderr
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=30)
        log.close()


def test_e2e_whose_run_fails_shows_pods_events_and_logs_and_leaves_nothing(machine: Machine, kfp: FakeKfp) -> None:
    machine.rules = [
        [
            "get pods -A --no-headers",
            {"out": "kubeflow train-sft-1 0/2 Error 0 2m\nkubeflow done-1 0/2 Completed 0 2m\n"},
        ]
    ]
    ended = machine.run("e2e.sh", PYTHON_BIN=submitting(machine, code=1), KFP_PORT=port_of(kfp))
    assert ended.returncode == 1
    assert "did not succeed in 60 min." in ended.stderr
    # The very command, by the real program against a server that speaks KFP's API.
    command = (machine.folder / "submitted").read_text().split()
    done = CliRunner().invoke(app, ["submit", *command])
    assert done.exit_code == 0, done.output
    asked = next(iter(kfp.runs.values())).body["runtime_config"]["parameters"]
    (version,) = kfp.versions.values()
    executors = version["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    sampling, deciding = (executors[name]["container"] for name in ("exec-sample-reasons", "exec-select-winner"))
    assert sampling["resources"] == {
        **{"cpuRequest": 0.1, "resourceCpuRequest": "100m"},
        **{"memoryLimit": 0.67108864, "resourceMemoryLimit": "640Mi"},
    }  # and no accelerator
    assert (deciding["image"], sampling["image"]) == (read_table()["cpu"], read_table()["train"])
    assert asked["model_uri"] == asked["teacher_uri"] == "s3://reasongenrm/smoke-inputs/model"
    deploy = DeployConfig.model_validate(asked["config"]["deploy"]).with_judge_image("any")
    assert (deploy.apply, deploy.runtime, deploy.min_golden_agreement) == (True, "reasongenrm-transformers", 0)
    check_settings(deploy)
    order(
        machine.calls(),
        "get pods -A -o wide",
        "get events",
        "describe pod train-sft-1",
        "logs train-sft-1 --all-containers",
    )
    assert "done-1" not in " ".join(machine.calls())
    wait_gone(machine)
    assert list((machine.folder / "scratch").iterdir()) == []


def test_e2e_gives_up_on_a_service_that_does_not_answer(machine: Machine) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ended = machine.run("e2e.sh", PYTHON_BIN=submitting(machine, code=0), KFP_PORT=port)
    assert ended.returncode == 1
    assert f"kubeflow/ml-pipeline does not answer at http://127.0.0.1:{port}/apis/v2beta1/healthz." in ended.stderr
    assert len(machine.calls("sleep")) == 23
    wait_gone(machine)


def test_node_image_and_kind_are_pinned() -> None:
    assert re.fullmatch(r"v\d+\.\d+\.\d+", VERSIONS["KIND_VERSION"])
    assert re.fullmatch(r"kindest/node:v\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", VERSIONS["NODE_IMAGE"])
    cluster = yaml.safe_load((KIND / "cluster.yaml").read_text())
    assert (cluster["kind"], cluster["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    assert cluster["networking"]["apiServerAddress"] == "127.0.0.1"
    assert all("image" not in node for node in cluster["nodes"])  # one place: versions.env


def test_smoke_inputs_render_in_an_image_of_the_table() -> None:
    rendered = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "kubectl"), "kustomize", str(KIND / "smoke-inputs")],
        capture_output=True,
        text=True,
        check=True,
    )
    job = yaml.safe_load(rendered.stdout)
    pod = job["spec"]["template"]["spec"]
    assert (job["metadata"]["namespace"], pod["containers"][0]["image"]) == ("kubeflow", read_table()["train"])
    assert pod["containers"][0]["command"][:4] == ["python", "-m", "reasongenrm.demo.smoke", "write"]
    assert pod["containers"][0]["command"][4] == "s3://reasongenrm/smoke-inputs"
    assert "bucket=reasongenrm\n" in (KIND / "lib.sh").read_text()


def folders_named() -> set[str]:
    """Every folder of this repository that the scripts apply."""
    text = "\n".join(script.read_text() for script in SCRIPTS).replace("$third_party", "manifests/third-party")
    return set(re.findall(r"\b(?:apply |overlay=)(manifests/[\w/-]+)", text))


def test_every_folder_that_is_applied_is_there() -> None:
    named = folders_named()
    assert {"manifests/overlays/kind", "manifests/third-party/kserve/crds", "manifests/kind/smoke-inputs"} <= named
    assert [name for name in sorted(named) if not (ROOT / name / "kustomization.yaml").is_file()] == []


def test_smoke_config_needs_no_gpu_and_lets_a_random_judge_pass() -> None:
    config = load_config(ROOT / "pipelines" / "configs" / "smoke.yaml")
    engines = [config.distill.engine, config.sample.engine, config.evaluate.engine]
    assert {engine.kind for engine in engines} == {"transformers"}
    assert config.deploy.gpu_count == 0
    assert (config.gate.min_accuracy_low, config.gate.max_unparsed_fraction, config.gate.beat_champion) == (0, 1, False)
