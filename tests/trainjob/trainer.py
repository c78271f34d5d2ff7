"""Kubeflow Trainer and JobSet as a script: what they would make of a TrainJob, step by step, in threads of their
own."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tests.kube.fake_api import FakeCluster
from tests.kube.objects import now
from tests.waiting import HANG_SECONDS

Job = dict[str, Any]
RUNNING: Job = {"running": {"startedAt": "2026-11-24T12:00:00Z"}}


class ScriptedTrainer:
    """Calls a script for every TrainJob that is created.

    Args:
        script: called in a thread with this object and the TrainJob.
    """

    def __init__(self, fake: FakeCluster, script: Callable[["ScriptedTrainer", Job], None]) -> None:
        self.fake, self._script = fake, script
        self.threads: list[threading.Thread] = []
        self.created: list[Job] = []
        self.errors: list[BaseException] = []
        fake.on_change("trainjobs", self._change)

    def finish(self) -> None:
        """Wait for the scripts; raises what one raised."""
        for thread in self.threads:
            thread.join(HANG_SECONDS)
            assert not thread.is_alive(), "a scripted trainer did not end"
        assert not self.errors, self.errors

    def also(self, act: Callable[[], None]) -> None:
        """Do something else in a thread meanwhile."""

        def run() -> None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001 - raised by `finish`
                self.errors.append(error)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def pod(self, job: Job, index: int = 0, *, state: Job = RUNNING, attempt: str = "abcde", **status: Any) -> str:
        """Write a pod as JobSet makes it; returns its name."""
        name, place = job["metadata"]["name"], job["metadata"]["namespace"]
        terminated = state.get("terminated")
        phase = "Running" if "running" in state else "Pending"
        if terminated:
            phase = "Failed" if terminated["exitCode"] else "Succeeded"
        pod_name = f"{name}-node-0-{index}-{attempt}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        owner = {"apiVersion": job["apiVersion"], "kind": "TrainJob", "name": name, "uid": job["metadata"]["uid"]}
        self.fake.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod_name, "namespace": place, "labels": labels, "ownerReferences": [owner]},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "node", "image": "reasongenrm-train"}]},
                "status": {"phase": phase, "containerStatuses": [{"name": "node", "state": state}], **status},
            }
        )
        return pod_name

    def log(self, job: Job, pod: str, *lines: str) -> None:
        """Let a pod's container write lines."""
        self.fake.log(job["metadata"]["namespace"], pod, "node", *lines)

    def condition(self, job: Job, kind: str, reason: str, message: str, status: str = "True") -> None:
        """Set the TrainJob's only condition, as its controller does; nothing if it has been deleted meanwhile."""
        metadata = job["metadata"]
        if self.fake.find("trainjobs", metadata["namespace"], metadata["name"]) is None:
            return
        condition = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}
        self.fake.set_status("trainjobs", metadata["namespace"], metadata["name"], {"conditions": [condition]})

    def complete(self, job: Job) -> None:
        """As after a JobSet that has ended well."""
        self.condition(job, "Complete", "AllJobsCompleted", "jobset completed successfully")

    def fail(self, job: Job) -> None:
        """As after a JobSet that has failed."""
        self.condition(job, "Failed", "FailedJobs", "jobset failed due to one or more job failures")

    def really_run(self, job: Job) -> None:
        """Be the kubelet of a one-node TrainJob: run its command here, its output being the pod's log."""
        trainer = job["spec"]["trainer"]
        assert trainer["command"][0] == "python"
        pod = self.pod(job)
        command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self.log(job, pod, line.rstrip("\n"))
        code = process.wait()
        self.pod(job, state={"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}})
        (self.fail if code else self.complete)(job)

    def _change(self, kind: str, job: Job) -> None:
        if kind == "ADDED":
            self.created.append(job)
            self.also(lambda: self._script(self, job))
