"""What a cluster gives the tasks: images, CPU, memory, accelerators, nodes, secrets. A local run ignores all of it.

It is written into the compiled pipeline (`resources` of a config file, `ResourcesConfig`): as parameters of a run, KFP
would repeat each of them in every task's state. No secret's value is ever part of it.
"""

from dataclasses import dataclass
from typing import Literal

from kfp import kubernetes
from kfp.dsl import PipelineTask

from reasongenrm.components import images
from reasongenrm.config import ResourcesConfig, Toleration
from reasongenrm.processes.mounted_secrets import FOLDER

SHM_SIZE = "8Gi"  # NCCL and data loaders; a container's own /dev/shm has 64 MiB
# Long tasks go on where they stopped, so a lost GPU or an endpoint that came back is worth two more tries. Light ones
# find what a user can fix (a bad row, a threshold), and say so at once.
NUM_RETRIES = 2
RETRY_AFTER = "60s"
# Light tasks take minutes; one that still runs after so long hangs. It does not count the wait for a node.
LIGHT_TIMEOUT_SECONDS = 6 * 3600
DEPLOYMENT = ("100m", "512Mi")  # CPU and memory of deploy_kserve, which mostly waits


@dataclass(frozen=True)
class Placement:
    """Puts tasks where a cluster is to run them."""

    resources: ResourcesConfig

    def light(
        self,
        task: PipelineTask,
        *,
        image: Literal["cpu", "train"],
        hub: bool = False,
        secrets: tuple[str, ...] = (),
        resources: tuple[str, str] | None = None,
    ) -> None:
        """A task without accelerators, of minutes."""
        cpu, memory = resources or (self.resources.cpu, self.resources.memory)
        kubernetes.set_timeout(task, LIGHT_TIMEOUT_SECONDS)
        self._nodes(task, self.resources.node_selector, self.resources.tolerations)
        self._pod(task, image, cpu, memory, self._optional(hub, secrets))

    def heavy(
        self,
        task: PipelineTask,
        *,
        image: Literal["train", "vllm"],
        hub: bool = False,
        secrets: tuple[str, ...] = (),
        teacher: bool = False,
    ) -> None:
        """A task that generates, scores or evaluates."""
        ours = self.resources
        self._accelerate(task, ours.num_teacher_accelerators if teacher else ours.num_accelerators)
        self._pod(task, image, ours.accelerator_cpu, ours.accelerator_memory, self._optional(hub, secrets))

    def training(self, task: PipelineTask) -> None:
        """A task that trains, in its own pod or in a TrainJob's."""
        self._accelerate(task, self.resources.num_train_accelerators)
        self._pod(task, "train", self.resources.train_cpu, self.resources.train_memory, ())

    def _optional(self, hub: bool, secrets: tuple[str, ...]) -> tuple[str, ...]:
        return (self.resources.hub_secret, *secrets) if hub else secrets

    def _accelerate(self, task: PipelineTask, number: int) -> None:
        if number:
            task.set_accelerator_type(self.resources.accelerator).set_accelerator_limit(number)
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=SHM_SIZE)
        task.set_retry(NUM_RETRIES, backoff_duration=RETRY_AFTER, backoff_factor=2.0)
        self._nodes(task, self.resources.accelerator_node_selector, self.resources.accelerator_tolerations)

    def _nodes(self, task: PipelineTask, selector: dict[str, str], tolerations: tuple[Toleration, ...]) -> None:
        for key, value in selector.items():
            kubernetes.add_node_selector(task, key, value)
        for toleration in tolerations:
            seconds = toleration.tolerationSeconds
            kubernetes.add_toleration(
                task, toleration.key, toleration.operator, toleration.value, toleration.effect, seconds
            )

    def _pod(self, task: PipelineTask, image: str, cpu: str, memory: str, secrets: tuple[str, ...]) -> None:
        """What every task has. Each stage looks into the store itself and is done in a second if its artifact is
        there, so KFP's own cache, which never checks that an artifact still exists, stays out of the way."""
        task.set_caching_options(False)
        task.set_container_image(getattr(self.resources, f"{image}_image") or images.image(image))
        task.set_cpu_request(cpu).set_memory_limit(memory)  # a limit is a request too
        # The user itself is the image's, or the cluster's choice.
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.set_image_pull_secrets(task, [self.resources.image_pull_secret])
        kubernetes.use_secret_as_volume(task, self.resources.s3_secret, f"{FOLDER}/s3")
        for secret in secrets:  # of a service that may need no key
            kubernetes.use_secret_as_volume(task, secret, f"{FOLDER}/{secret}", optional=True)
