"""Pods that are processes, and the way to them: what the load test adds to the scripted KServe.

- A pod of the judge's server is `reasongenrm judge-server` with the arguments of its manifest, so its signals, its
  connections and its end are real. A pod of the model is a predictor in this process that answers by a rule.
- A pod whose owner is deleted gets SIGTERM; one of the model only after its preStop hook's sleep (Kubernetes,
  pkg/kubelet/kuberuntime/kuberuntime_container.go, killContainer).
- `Proxy` is the Service's address on a node, as kube-proxy makes it: a new connection goes to one of the ready
  endpoints that the node knows, which it learns with a delay; a connection that stands stays where it leads
  (conntrack).
"""

import contextlib
import itertools
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.deploy.kserve import NAMESPACE, Item, KServe, pod_status
from tests.endpoints import serving
from tests.kube.fake_api import FakeCluster
from tests.waiting import HANG_SECONDS, wait_until


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Kubelet(KServe):
    """A KServe whose pods run.

    Args:
        model_of: what a checkpoint, by the last part of its URI, answers: an ASGI app; None if it cannot start.
    """

    def __init__(self, cluster: FakeCluster, model_of: Callable[[str], Any]) -> None:
        super().__init__(cluster, "", "")
        self.model_of = model_of
        self.ports: dict[str, int] = {}  # pod -> where its process listens
        self.judges: dict[str, subprocess.Popen[bytes]] = {}
        self._models: dict[str, contextlib.ExitStack] = {}
        self._ending: list[threading.Thread] = []
        cluster.on_change("pods", self._pod_changed)

    def predict(self, service: Item) -> None:
        how = service["spec"]["predictor"]["model"]["storageUri"].rstrip("/").rsplit("/", 1)[-1]
        app = self.model_of(how)
        lifecycle = service["spec"]["predictor"]["model"]["lifecycle"]
        container = {"name": "kserve-container", "image": "judge:1", "lifecycle": lifecycle}
        pod = self._component(service, "predictor", {"containers": [container]})
        name, deployment = pod["metadata"]["name"], pod["metadata"]["ownerReferences"][0]["name"]
        if app is None:
            state = {"waiting": {"reason": "CrashLoopBackOff"}}
            self.cluster.log(NAMESPACE, name, "kserve-container", "CUDA out of memory")
            self._pod_is(pod, pod_status(ready=False, state=state, crashed=True))
            self._deployment_is(deployment, available=0)
            return
        stack = contextlib.ExitStack()
        self._models[name] = stack
        url = stack.enter_context(serving(app))
        self._pod_is(pod, pod_status(ready=True))
        self._deployment_is(deployment, available=1)
        self._start_judge(service, url)
        self._status(service, ready="True")

    def transform(self, service: Item) -> bool:
        return service["spec"]["transformer"] is not None  # it starts with its model, which it needs to be ready

    def _start_judge(self, service: Item, predictor_url: str) -> None:
        spec = service["spec"]["transformer"]
        pod = self._component(service, "transformer", {key: spec[key] for key in ("containers", "volumes")})
        name, port = pod["metadata"]["name"], free_port()
        arguments = [argument for argument in spec["containers"][0]["args"] if not argument.startswith("--host")]
        command = [sys.executable, "-m", "reasongenrm", "judge-server", *arguments, f"--http_port={port}"]
        self.judges[name] = subprocess.Popen(
            [*command, f"--predictor_host={predictor_url.removeprefix('http://')}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.ports[name] = port
        self.judge = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{self.judge}/readyz"))
        self._pod_is(pod, pod_status(ready=True))
        self._deployment_is(pod["metadata"]["ownerReferences"][0]["name"], available=1)

    def _pod_changed(self, event: str, pod: Item) -> None:
        if event != "DELETED":
            return
        name, lifecycle = pod["metadata"]["name"], pod["spec"]["containers"][0].get("lifecycle")
        if name in self.judges:
            self.judges[name].send_signal(signal.SIGTERM)
        if name in self._models:
            stays = lifecycle["preStop"]["sleep"]["seconds"]
            ending = threading.Timer(stays, self._models.pop(name).close)
            ending.start()
            self._ending.append(ending)

    def stop(self) -> None:
        """End whatever runs still."""
        for process in self.judges.values():
            process.kill()
            process.wait(HANG_SECONDS)
        for ending in self._ending:
            ending.join(HANG_SECONDS)
        for stack in self._models.values():
            stack.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Proxy:
    """A Service's address on one node; a context that forwards connections."""

    def __init__(self, cluster: FakeCluster, service: str, ports: dict[str, int], delay_seconds: float) -> None:
        self._cluster, self._service, self._ports, self._delay = cluster, service, ports, delay_seconds
        self._known: list[str] = []  # pods
        self._turns = itertools.count()
        self._stopping = False
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._learn), threading.Thread(target=self._accept)]

    def __enter__(self) -> "Proxy":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join(HANG_SECONDS)
        self._listening.close()

    def _learn(self) -> None:
        """Follow the EndpointSlices, late."""
        pending: list[tuple[float, list[str]]] = []
        seen: list[str] = []
        while not self._stopping:
            slices = [
                found
                for found in self._cluster.objects("endpointslices", NAMESPACE)
                if found["metadata"]["labels"]["kubernetes.io/service-name"] == self._service
            ]
            ends = [end for found in slices for end in found["endpoints"]]
            now = [end["targetRef"]["name"] for end in ends if end["conditions"]["ready"]]
            if now != seen:
                pending.append((time.monotonic() + self._delay, now))
                seen = now
            while pending and pending[0][0] <= time.monotonic():
                self._known = pending.pop(0)[1]
            time.sleep(0.01)

    def _accept(self) -> None:
        while not self._stopping:
            if select.select([self._listening], [], [], 0.05)[0]:
                client, _ = self._listening.accept()
                known = self._known
                if not known:
                    client.close()  # kube-proxy rejects where there is no endpoint
                    continue
                port = self._ports[known[next(self._turns) % len(known)]]
                threading.Thread(target=_join, args=(client, port), daemon=True).start()


def _join(client: socket.socket, port: int) -> None:
    """Carry bytes both ways until one side closes."""
    try:
        server = socket.create_connection(("127.0.0.1", port), timeout=5)
    except OSError:
        client.close()
        return
    server.settimeout(None)
    with client, server, contextlib.suppress(OSError):
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                (server if source is client else client).sendall(data)
