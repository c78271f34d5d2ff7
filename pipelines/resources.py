"""What a cluster gives the tasks: CPU, memory, accelerators, secrets. A local run ignores all of it.

Amounts, the accelerator's kind and the names of secrets are parameters of the pipeline; what KFP fixes when it compiles (the
size of /dev/shm, the user) stands here. No secret's value ever is a parameter.
"""

from dataclasses import dataclass

from kfp import kubernetes
from kfp.dsl import PipelineTask

# Keys of the secrets -> environment variables of the tasks; the same names.
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_OPTIONAL_KEYS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN")  # AWS itself needs no endpoint
TEACHER_KEY = "OPENAI_API_KEY"
HUB_KEY = "HF_TOKEN"

SHM_SIZE = "8Gi"  # NCCL and data loaders; a container's own /dev/shm has 64 MiB


@dataclass(frozen=True)
class Resources:
    """Pipeline parameters of one class of tasks (each a value or, while a pipeline is compiled, a channel)."""

    cpu: str
    memory: str
    accelerator: str | None = None
    num_accelerators: int = 0


def place(tasks: tuple[PipelineTask, ...], resources: Resources, s3_secret: str) -> None:
    """Give tasks their resources and the store's credentials; keep KFP's own cache out of the way.

    KFP's cache never checks that an artifact still exists; a stage looks into the store itself and is done in a second.
    """
    for task in tasks:
        task.set_caching_options(False)
        task.set_cpu_request(resources.cpu).set_memory_limit(resources.memory)  # a limit is a request too
        if resources.accelerator is not None:
            task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.num_accelerators)
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=SHM_SIZE)
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.use_secret_as_env(task, s3_secret, {key: key for key in S3_KEYS})
        kubernetes.use_secret_as_env(task, s3_secret, {key: key for key in S3_OPTIONAL_KEYS}, optional=True)


def give_secret(task: PipelineTask, secret: str, key: str) -> None:
    """Put one optional key of a secret into a task's environment, under the key's own name."""
    kubernetes.use_secret_as_env(task, secret, {key: key}, optional=True)
