"""Runs a stage's training as a TrainJob and waits until its artifact is in the store.

The step's own pod only waits: it creates the TrainJob or takes up one that is there, writes node 0's log into its own,
and takes the TrainJob down again if it is stopped or fails. The pods of the TrainJob run the same stage (`train_node`).
"""

import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.errors import ClusterError, TrainingError
from reasongenrm.kubernetes.cluster import AlreadyExistsError, Cluster, ConflictError
from reasongenrm.kubernetes.health import condition
from reasongenrm.kubernetes.kinds import POD, TRAIN_JOB
from reasongenrm.kubernetes.waiting import poll
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage
from reasongenrm.training.job import check_config
from reasongenrm.trainjob.node import train_here, training_stage
from reasongenrm.trainjob.pods import TrainPods
from reasongenrm.trainjob.spec import KEY_LABEL, LAUNCH_ANNOTATION, STORE_ANNOTATION, owner_reference, render_trainjob

POLL_SECONDS = 5.0  # between two looks at the TrainJob and its pods
LEAVE_SECONDS = 5.0  # for each of the three or four requests that take the TrainJob down; a pod has 30 s to end


def train_where_configured(
    store: Store, config: SFTConfig | DPOConfig, variant: str | None = None, /, **inputs: ArtifactRef
) -> ArtifactRef:
    """Run train_sft (of a variant) or train_dpo: with `mode: pod` here, with `mode: trainjob` in the pods of a
    TrainJob.

    The artifact is the same: where a stage works is no part of its key. Raises what the stage and `run_as_trainjob`
    raise.

    Args:
        inputs: `model`, and `examples` or `preferences`.
    """
    if config.mode == "pod":
        return train_here(store, config, variant, inputs)
    stage = training_stage(store, config, variant, inputs)
    check_config(config, stage.name)
    with stage:
        return stage.done or run_as_trainjob(stage, config, inputs)


def run_as_trainjob(stage: Stage, config: TrainConfig, inputs: Mapping[str, ArtifactRef]) -> ArtifactRef:
    """Train in the pods of a TrainJob; returns the artifact that node 0 finished.

    A TrainJob of the same stage, key and store that is there already is taken up; a finished one that left no artifact
    is created again, once. While it is queued there is no time-out. If this process is stopped or anything fails, the
    TrainJob is deleted, unless another running step has taken it up as well; its checkpoints stay, and the next run
    goes on from them.

    Args:
        stage: entered, and not done.
        config: of the stage, with `mode: trainjob`.
        inputs: the stage's artifacts by the names that they have in its key.

    Raises:
        ConfigError: train_batch_size does not split over the processes.
        ClusterError: the cluster refused, the name is taken by another TrainJob, or somebody deleted ours.
        TrainingError: the TrainJob failed, a pod could not start, or it ended without an artifact.
    """
    launched = _Launched(Cluster.connect(), stage, config, inputs)
    try:
        ref = launched.claim()
        if ref is not None:
            return ref
        launched.follow()
        return launched.artifact()
    except BaseException:
        launched.leave()
        raise


class _Launched:
    """One stage's TrainJob, from its creation or adoption to its end."""

    def __init__(self, cluster: Cluster, stage: Stage, config: TrainConfig, inputs: Mapping[str, ArtifactRef]) -> None:
        self._cluster, self._stage, self._config = cluster, stage, config
        self._launch = uuid.uuid4().hex
        self._body = render_trainjob(stage, config, inputs, cluster.namespace, self._launch)
        self._namespace, self._name = cluster.namespace, self._body["metadata"]["name"]
        self._uid: str | None = None
        self._pods: TrainPods | None = None
        self.place = f"TrainJob {self._namespace}/{self._name}"

    def claim(self) -> ArtifactRef | None:
        """Create the TrainJob or take up the one that is there; returns the artifact if that one has just finished
        it."""
        recreated = False
        while self._uid is None:
            found = self._get()
            if found is None:
                self._create()
                continue
            self._check_ours(found)
            state = _state(found)
            if "deletionTimestamp" in found["metadata"]:
                self._say(f"waits for an earlier {self.place} to go")
                self._wait_until_gone(found["metadata"]["uid"])
            elif state not in ("Complete", "Failed"):
                self._adopt(found)
            elif (ref := self._stage.find_done()) is not None:
                self._say(f"{self.place} has ended meanwhile and wrote {ref.uri}")
                return ref
            elif recreated:
                raise TrainingError(
                    f"{self._stage.name}: {self.place} is {state} again, although it has just been created again: "
                    "another run works on the same stage. Wait for it, then run again."
                )
            else:
                recreated = True
                uid, why = found["metadata"]["uid"], _message(found)
                self._say(f"an earlier {self.place} is {state} and left no artifact ({why}); creates it again")
                self._cluster.delete(TRAIN_JOB, self._namespace, self._name, uid=uid, foreground=True)
                self._wait_until_gone(uid)
        self._pods = TrainPods(self._cluster, self._namespace, self._name, self._uid, self._config.trainjob, self._say)
        return None

    def follow(self) -> None:
        """Stand by until the TrainJob is Complete; raise if it fails, is deleted, or a pod cannot start."""
        assert self._pods is not None
        said = started = time.monotonic()
        for job in poll(self._look, POLL_SECONDS):
            state = _state(job)
            if state in ("Complete", "Failed"):
                self._pods.finish_logs()
            if state == "Complete":
                return
            if state == "Failed":
                raise TrainingError(
                    f"{self._stage.name}: {self.place} failed: {_message(job)}; {self._pods.why_failed()}"
                    "Fix the cause and run again: it goes on from the last checkpoint."
                )
            if state == "Suspended" and time.monotonic() - said >= self._config.trainjob.report_seconds:
                said = time.monotonic()
                minutes = (said - started) / 60
                queue = self._config.trainjob.queue
                where = f"in queue {queue} (kubectl get workloads -n {self._namespace})" if queue else "suspended"
                waits = f"{self.place} waits {where} for {minutes:.0f} min: {_message(job)}. {self._pods.events()}"
                self._say(waits.rstrip())

    def _look(self) -> dict[str, Any]:
        """The TrainJob; while it runs, its pods are looked at as well."""
        job = self._get()
        if job is None or job["metadata"]["uid"] != self._uid:
            raise ClusterError(
                f"{self._stage.name}: {self.place} was deleted by someone else while it was followed. Run again: it "
                "goes on from the last checkpoint."
            )
        if _state(job) == "Running":
            assert self._pods is not None
            self._pods.check()
        return job

    def artifact(self) -> ArtifactRef:
        """The artifact that is there now; raise if none is."""
        ref = self._stage.find_done()
        if ref is None:
            assert self._pods is not None
            tail = "\n".join(f"    {line}" for line in self._pods.tail)
            raise TrainingError(
                f"{self._stage.name}: {self.place} is Complete, but {self._stage.store.uri_of(self._stage.folder)} "
                "holds no "
                f"finished artifact. Does the Secret {self._config.trainjob.s3_secret} lead to the same store as here? "
                "Node 0 "
                f"wrote last:\n{tail}"
            )
        self._say(f"{self.place} wrote {ref.uri}")
        return ref

    def leave(self) -> None:
        """Take the TrainJob down; what fails here is told, and hides nothing of why we leave."""
        if self._pods is not None:
            self._pods.stop()
        with _ignoring_sigterm():
            try:
                self._take_down(self._cluster.within(LEAVE_SECONDS))
            except ClusterError as error:
                self._say(
                    f"{self.place} may still be there: {error} Delete it: kubectl delete trainjob {self._name} -n "
                    f"{self._namespace}"
                )

    def _take_down(self, cluster: Cluster) -> None:
        found = cluster.get(TRAIN_JOB, self._namespace, self._name)
        if found is None:
            return
        metadata = found["metadata"]
        if metadata["uid"] != self._uid and metadata.get("annotations", {}).get(LAUNCH_ANNOTATION) != self._launch:
            return
        me = owner_reference()
        others = [owner for owner in metadata.get("ownerReferences", []) if me is None or owner["uid"] != me["uid"]]
        if any(self._is_alive(cluster, owner) for owner in others):
            patch = {"metadata": {"ownerReferences": others, "resourceVersion": metadata["resourceVersion"]}}
            cluster.patch(TRAIN_JOB, self._namespace, self._name, patch)
            self._say(f"{self.place} goes on: another step waits for it")
            return
        cluster.delete(TRAIN_JOB, self._namespace, self._name, uid=metadata["uid"])
        self._say(f"deleted {self.place}; the next run goes on from its last checkpoint")

    def _is_alive(self, cluster: Cluster, owner: Mapping[str, Any]) -> bool:
        pod = cluster.get(POD, self._namespace, owner["name"]) if owner["kind"] == "Pod" else None
        if pod is None or pod["metadata"]["uid"] != owner["uid"]:
            return False
        return pod.get("status", {}).get("phase", "Pending") in ("Pending", "Running")

    def _get(self) -> dict[str, Any] | None:
        return self._cluster.get(TRAIN_JOB, self._namespace, self._name)

    def _create(self) -> None:
        try:
            made = self._cluster.create(TRAIN_JOB, self._namespace, self._body)
        except AlreadyExistsError:
            return  # another step was faster; look again
        self._uid = str(made["metadata"]["uid"])
        self._say(f"created {self.place}")
        if owner_reference() is None:
            self._say(
                "KFP_POD_NAME and KFP_POD_UID are not set, so nothing deletes the TrainJob if this process is killed "
                f"(kill -9); kubectl delete trainjob {self._name} -n {self._namespace} would."
            )

    def _check_ours(self, found: Mapping[str, Any]) -> None:
        metadata = found["metadata"]
        key = metadata.get("labels", {}).get(KEY_LABEL)
        store = metadata.get("annotations", {}).get(STORE_ANNOTATION)
        if (key, store) != (self._stage.key, self._stage.store.uri):
            raise ClusterError(
                f"{self._stage.name}: {self.place} exists, but is not this stage's: its label {KEY_LABEL} is {key!r} "
                f"and its annotation {STORE_ANNOTATION} {store!r}; expected {self._stage.key!r} and "
                f"{self._stage.store.uri!r}. Rename or delete it."
            )

    def _adopt(self, found: Mapping[str, Any]) -> None:
        me, metadata = owner_reference(), found["metadata"]
        owners = metadata.get("ownerReferences", [])
        if me is not None and me["uid"] not in [owner["uid"] for owner in owners]:
            patch = {"metadata": {"ownerReferences": [*owners, me], "resourceVersion": metadata["resourceVersion"]}}
            try:
                self._cluster.patch(TRAIN_JOB, self._namespace, self._name, patch)
            except ConflictError:
                return  # it has changed; look again
        self._uid = str(metadata["uid"])
        self._say(f"takes up {self.place}, which is {_state(found)} since {metadata['creationTimestamp']}")

    def _wait_until_gone(self, uid: str) -> None:
        """No time-out: the pods of a large job take their time to end, and the name is taken until they have."""
        said = time.monotonic()
        for found in poll(self._get, POLL_SECONDS):
            if found is None or found["metadata"]["uid"] != uid:
                return
            if time.monotonic() - said >= self._config.trainjob.report_seconds:
                said = time.monotonic()
                self._say(f"still waits for an earlier {self.place} to go")

    def _say(self, line: str) -> None:
        print(f"{self._stage.name}: {line}", flush=True)  # noqa: T201 - the step's log


def _state(job: Mapping[str, Any]) -> str:
    """Complete, Failed, Suspended or Running. Kueue holds a TrainJob back by `suspend`, before there is any
    condition."""
    true = [kind for kind in ("Complete", "Failed", "Suspended") if condition(job, kind).get("status") == "True"]
    return true[0] if true else "Suspended" if job["spec"].get("suspend") else "Running"


def _message(job: Mapping[str, Any]) -> str:
    state = _state(job)
    said = condition(job, state)
    said = said if said.get("status") == "True" else {}
    return f"{said.get('reason', state)}: {said.get('message', 'no message')}".rstrip(".")


@contextmanager
def _ignoring_sigterm() -> Iterator[None]:
    """A second SIGTERM does not stop the clean-up that the first one began."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
