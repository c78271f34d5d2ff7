"""A local cluster of two cores and 6 GiB has room for all that `make kind-up kind-e2e` starts, by the sum of requests.

A pod for which the node has no room stays Pending: a task waits until another one ends, but deploy_kserve waits for
judges that wait for it. What is ours is added up from the rendered overlay, the compiled pipeline and the very
arguments of manifests/kind/e2e.sh; what is not, from what its makers ask for at the versions that we pin (`PUBLISHED`).
Our patch of KFP's requests is applied by kustomize to Deployments of these names.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from reasongenrm.cli.settings import make_config
from reasongenrm.config import RunConfig
from reasongenrm.pipelines.compile import compile_pipeline
from tests.kube.pods import containers, pod_specs
from tests.manifests import MANIFESTS, ROOT, render, rendered
from tests.manifests.test_kind import VERSIONS

_UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


class Requests(NamedTuple):
    """What pods ask for, exactly: CPU in thousandths, memory in MiB."""

    cpu: int
    memory: int

    @classmethod
    def of(cls, cpu: str | None, memory: str | None) -> "Requests":
        return cls(round(number(cpu or "0") * 1000), round(number(memory or "0") / 2**20))


def number(quantity: str) -> float:
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    assert found, quantity
    return float(found[1]) * _UNITS[found[2]]


def total(requests: Iterable[Requests]) -> Requests:
    found = list(requests)
    return Requests(sum(one.cpu for one in found), sum(one.memory for one in found))


def largest(*requests: Requests) -> Requests:
    return Requests(max(one.cpu for one in requests), max(one.memory for one in requests))


def of_pod(spec: dict[str, Any]) -> Requests:
    """As the scheduler counts: the sum of the containers, or the largest init container. A limit is a request too."""
    found: dict[str, list[Requests]] = {"containers": [], "initContainers": []}
    for where, container in containers(spec):
        asked = (container.get("resources") or {}).get("limits", {}) | (container.get("resources") or {}).get(
            "requests", {}
        )
        found[where.partition("[")[0]].append(Requests.of(asked.get("cpu"), asked.get("memory")))
    return largest(total(found["containers"]), *found["initContainers"])


# Namespace -> workload -> what one pod of it asks for, and how many there are.
# kube-system: kubeadm v1.34, cmd/kubeadm/app/phases/{controlplane/manifests,etcd/local,addons/dns/manifests}.go; kind
#   v0.30.0, pkg/build/nodeimage/const_{cni,storage}.go. kubelet and containerd are no pods, and kind reserves nothing
#   for them.
# cert-manager v1.17.0, deploy/charts/cert-manager/values.yaml: `resources: {}` three times.
# kubeflow: kubeflow/pipelines at 2.17.0 (4a3592cb2d), manifests/kustomize/env/platform-agnostic as it renders; each
#   pod has one container, and init containers that ask for less (10m, 16Mi).
# kserve: kserve/kserve at v0.20.0, config/overlays/standalone/kserve as it renders.
PUBLISHED: dict[str, dict[str, tuple[str | None, str | None, int]]] = {
    "kube-system": {
        "etcd": ("100m", "100Mi", 1),
        "kube-apiserver": ("250m", None, 1),
        "kube-controller-manager": ("200m", None, 1),
        "kube-scheduler": ("100m", None, 1),
        "coredns": ("100m", "70Mi", 2),
        "kindnet": ("100m", "50Mi", 1),
        "kube-proxy": (None, None, 1),
        "local-path-provisioner": (None, None, 1),
    },
    "cert-manager": {
        "cert-manager": (None, None, 1),
        "cert-manager-cainjector": (None, None, 1),
        "cert-manager-webhook": (None, None, 1),
    },
    "kubeflow": {
        "cache-deployer-deployment": (None, None, 1),
        "cache-server": (None, None, 1),
        "metadata-envoy-deployment": (None, None, 1),
        "metadata-grpc-deployment": (None, None, 1),
        "metadata-writer": (None, None, 1),
        "ml-pipeline": ("250m", "500Mi", 1),
        "ml-pipeline-persistenceagent": ("120m", "500Mi", 1),
        "ml-pipeline-scheduledworkflow": (None, None, 1),
        "ml-pipeline-ui": ("10m", "70Mi", 1),
        "ml-pipeline-viewer-crd": (None, None, 1),
        "ml-pipeline-visualizationserver": ("30m", "500Mi", 1),
        "mysql": ("100m", "800Mi", 1),
        "seaweedfs": ("64m", "256Mi", 1),
        "workflow-controller": ("100m", "500Mi", 1),
    },
    "kserve": {"kserve-controller-manager": ("100m", "200Mi", 1)},
}
# TRAINER=1: kubernetes-sigs/jobset at v0.12.0, config/components/manager/manager.yaml;
# kubeflow/trainer at v2.3.0, manifests/base/manager/manager.yaml, which asks for nothing.
TRAINER = Requests.of("500m", "128Mi")
# kubeflow/pipelines at 2.17.0, backend/src/v2/compiler/argocompiler/argo.go: driverResources; launcherResources, of an
# init container of a task's pod. Argo's own containers ask for nothing: KFP's workflow-controller-configmap sets no
# resources for its executor.
DRIVER, LAUNCHER = Requests.of("100m", "64Mi"), Requests.of("100m", None)
STORAGE_INITIALIZER = Requests.of("100m", "100Mi")  # kserve v0.20.0, config/storagecontainers/default.yaml

NODE = Requests(int(VERSIONS["MIN_CPUS"]) * 1000, int(VERSIONS["MIN_MEMORY_GIB"]) * 1024 - 256)  # as up.sh lets pass


def published(namespace: str) -> Requests:
    return total(Requests.of(cpu, memory) for cpu, memory, count in PUBLISHED[namespace].values() for _ in range(count))


def stand_in_for_kfp(folder: Path) -> Path:
    """manifests/ with KFP itself replaced by its Deployments and its ConfigMap, so that kustomize needs no network."""
    shutil.copytree(MANIFESTS, folder / "manifests")
    kfp = folder / "manifests" / "third-party" / "kfp"
    kustomization = yaml.safe_load((kfp / "kustomization.yaml").read_text())
    kustomization["resources"] = ["kfp.yaml"]
    objects: list[dict[str, Any]] = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": "kubeflow"},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "containers": [
                            {"name": "main", "image": f"{name}:2.17.0"}
                            | ({"resources": {"requests": {"cpu": cpu, "memory": memory}}} if cpu else {})
                        ]
                    },
                },
            },
        }
        for name, (cpu, memory, _) in PUBLISHED["kubeflow"].items()
    ]
    launcher = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "kfp-launcher",
            "namespace": "kubeflow",
            "labels": {"application-crd-id": "kubeflow-pipelines"},
        },
        "data": {"defaultPipelineRoot": ""},
    }
    (kfp / "kfp.yaml").write_text(yaml.safe_dump_all([*objects, launcher]))
    (kfp / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder / "manifests"


@pytest.fixture(scope="module")
def kfp_of_kind(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What up.sh applies in place of KFP."""
    return render(stand_in_for_kfp(tmp_path_factory.mktemp("kfp")) / "kind" / "kfp")


@pytest.fixture(scope="module")
def smoke_run() -> RunConfig:
    """The settings of the run that e2e.sh submits. Names and images, which the shell puts in, ask for nothing."""
    text = (MANIFESTS / "kind" / "e2e.sh").read_text(encoding="utf-8")
    assignments = [found for found in re.findall(r'--set "?([^"\s]+)', text) if "$" not in found]
    assert "resources.num_accelerators=0" in assignments
    return make_config(ROOT / "pipelines" / "configs" / "smoke.yaml", assignments)


class TaskPods(NamedTuple):
    """One task of the pipeline: what its pods ask for, one after the other, and the tasks that end before it begins."""

    requests: Requests
    after: frozenset[str]


def tasks_of(config: RunConfig) -> dict[str, TaskPods]:
    """Every task of the compiled pipeline with these settings. Its driver's pod ends before its own begins."""
    spec = next(yaml.safe_load_all(compile_pipeline(config.resources).ir))
    found: dict[str, TaskPods] = {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        executor = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        asked = spec["deploymentSpec"]["executors"][executor]["container"]["resources"]
        own = Requests.of(asked["resourceCpuRequest"], asked["resourceMemoryLimit"])
        found[name] = TaskPods(largest(own, LAUNCHER, DRIVER), frozenset(task.get("dependentTasks", ())))
    return found


def ancestors(tasks: dict[str, TaskPods], name: str) -> set[str]:
    found = set[str]()
    for other in tasks[name].after:
        found |= {other} | ancestors(tasks, other)
    return found


def widest(tasks: dict[str, TaskPods]) -> tuple[set[str], Requests]:
    """The tasks that may run at the same time and ask for the most memory together."""
    before = {name: ancestors(tasks, name) for name in tasks}
    best: tuple[set[str], Requests] = set(), Requests(0, 0)
    chosen: list[set[str]] = [set()]
    while chosen:
        grown = []
        for group in chosen:
            for name in tasks:
                if all(name > other and name not in before[other] and other not in before[name] for other in group):
                    grown.append(group | {name})
        for group in grown:
            asked = total(tasks[name].requests for name in group)
            best = (group, asked) if asked.memory > best[1].memory else best
        chosen = grown
    return best


def standing(kfp_of_kind: list[dict[str, Any]]) -> Requests:
    """What runs all the time, from `make kind-up` on."""
    third_party = total(published(namespace) for namespace in PUBLISHED if namespace != "kubeflow")
    return total([third_party, total(long_running(kfp_of_kind)), total(long_running(rendered("kind")))])


def long_running(objects: list[dict[str, Any]]) -> list[Requests]:
    return [
        of_pod(spec)
        for item in objects
        if item["kind"] in ("Deployment", "StatefulSet")
        for _, spec, _ in pod_specs(item)
        for _ in range(item["spec"].get("replicas", 1))
    ]


def judge_of(config: RunConfig) -> Requests:
    """Both pods of one judge. reasongenrm.deploy gives them these amounts as requests and limits."""
    deploy = config.deploy
    model = largest(Requests.of(deploy.cpu, deploy.memory), STORAGE_INITIALIZER)
    return total([model, Requests.of(deploy.judge.cpu, deploy.judge.memory)])


def test_published_requests_are_those_that_were_seen_on_a_real_cluster() -> None:
    assert published("kube-system").cpu == 950
    assert published("kubeflow") == (674, 3126)  # 0.674 CPU: measured on Kubernetes 1.36.2 with KFP 2.17.0
    assert published("kserve") == (100, 200)


def test_tasks_and_their_order_are_those_of_the_pipeline(smoke_run: RunConfig) -> None:
    tasks = tasks_of(smoke_run)
    assert len(tasks) == 11
    assert tasks["train-dpo"].requests == (100, 1024)
    assert tasks["deploy-kserve"].requests == (100, 512)
    assert ancestors(tasks, "deploy-kserve") == tasks.keys() - {"deploy-kserve"}  # it runs alone
    assert ancestors(tasks, "distill-reasons") == {"prepare-pairs"}


def test_deployment_next_to_a_served_judge_has_room(kfp_of_kind: list[dict[str, Any]], smoke_run: RunConfig) -> None:
    """The whole of it must be there at once: the task, the judge that answers until the end, and the new one."""
    judge = judge_of(smoke_run)
    asked = total([standing(kfp_of_kind), tasks_of(smoke_run)["deploy-kserve"].requests, judge, judge])
    assert asked.cpu <= NODE.cpu, asked
    assert asked.memory <= NODE.memory, asked


def test_every_task_has_room_next_to_a_served_judge(kfp_of_kind: list[dict[str, Any]], smoke_run: RunConfig) -> None:
    left = [
        here - there - served
        for here, there, served in zip(NODE, standing(kfp_of_kind), judge_of(smoke_run), strict=True)
    ]
    for name, task in tasks_of(smoke_run).items():
        assert task.requests.cpu <= left[0], name
        assert task.requests.memory <= left[1], name


def test_first_run_has_room_at_its_widest(kfp_of_kind: list[dict[str, Any]], smoke_run: RunConfig) -> None:
    names, asked = widest(tasks_of(smoke_run))
    assert len(names) >= 2
    together = total([standing(kfp_of_kind), asked])
    assert together.cpu <= NODE.cpu, (names, together)
    assert together.memory <= NODE.memory, (names, together)


def test_jobs_have_room_next_to_a_served_judge(kfp_of_kind: list[dict[str, Any]], smoke_run: RunConfig) -> None:
    smoke_inputs = render(MANIFESTS / "kind" / "smoke-inputs")
    jobs = [
        of_pod(spec)
        for item in [*rendered("kind"), *smoke_inputs]
        if item["kind"] == "Job"
        for _, spec, _ in pod_specs(item)
    ]
    assert len(jobs) == 2
    asked = total([standing(kfp_of_kind), judge_of(smoke_run), *jobs])
    assert asked.cpu <= NODE.cpu, asked
    assert asked.memory <= NODE.memory, asked


def test_trainers_controllers_have_room_on_the_machine_that_kind_up_asks_for(
    kfp_of_kind: list[dict[str, Any]], smoke_run: RunConfig
) -> None:
    judge = judge_of(smoke_run)
    deployment = tasks_of(smoke_run)["deploy-kserve"].requests
    asked = total([standing(kfp_of_kind), TRAINER, deployment, judge, judge])
    assert NODE.cpu < asked.cpu <= int(VERSIONS["MIN_CPUS_WITH_TRAINER"]) * 1000, asked
    assert asked.memory <= NODE.memory, asked


def test_page_says_what_is_added_up(kfp_of_kind: list[dict[str, Any]], smoke_run: RunConfig) -> None:
    text = " ".join((ROOT / "docs" / "install.md").read_text(encoding="utf-8").split())
    judge, task = judge_of(smoke_run), tasks_of(smoke_run)["deploy-kserve"].requests
    stands = standing(kfp_of_kind)
    whole = total([stands, task, judge, judge])
    for what, asked in {
        "what always runs": stands,
        "one judge": judge,
        "deploy_kserve": task,
        "at once": whole,
    }.items():
        assert f"{what}, {asked.cpu}m CPU and {asked.memory} MiB" in text, (what, asked)


def test_quantities_are_read_as_kubernetes_does() -> None:
    assert Requests.of("100m", "1Gi") == Requests.of("0.1", "1024Mi") == (100, 1024)
