"""What a cluster gives the tasks: images, CPU, memory, accelerators, nodes, secrets. A local run ignores all of it.

What KFP 2.17 takes as a parameter is a parameter of the pipeline, with the defaults of `ResourcesConfig`
(reasongenrm/config.py); what it fixes when it compiles (sizes of volumes, retries, time limits, names of environment
variables) stands here. No secret's value ever is a parameter.
"""

from dataclasses import dataclass
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

# Keys of the secrets -> environment variables of the tasks; the same names.
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_OPTIONAL_KEYS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN")  # AWS itself needs no endpoint
TEACHER_KEY = "OPENAI_API_KEY"
HUB_KEY = "HF_TOKEN"
# Of the judge's server, of the model behind it, and of Kubeflow Model Registry (deploy.model_registry).
DEPLOY_KEYS = ("JUDGE_API_KEY", "VLLM_API_KEY", "MODEL_REGISTRY_TOKEN")

# Who the pod is, for what it makes in the cluster (TrainJobs, deployments): owner references need name and uid.
POD_FIELDS = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_NAMESPACE": "metadata.namespace"}

SHM_SIZE = "8Gi"  # NCCL and data loaders; a container's own /dev/shm has 64 MiB
# Long tasks go on where they stopped, so a lost GPU or an endpoint that came back is worth two more tries. Light ones
# find what a
# user can fix (a bad row, a threshold), and say so at once.
NUM_RETRIES = 2
RETRY_AFTER = "60s"
# Light tasks take minutes; one that still runs after so long hangs. It does not count the wait for a node.
LIGHT_TIMEOUT_SECONDS = 6 * 3600


@dataclass(frozen=True)
class Nodes:
    """Where pods may run. Values or, while a pipeline is compiled, channels; so are all fields here."""

    node_selector: Any
    tolerations: Any


@dataclass(frozen=True)
class Resources:
    """One class of tasks: what each of its pods asks for."""

    cpu: str
    memory: str
    nodes: Nodes
    accelerator: str | None = None
    num_accelerators: int = 0


@dataclass(frozen=True)
class Access:
    """What every pod needs to start and to reach the store: names of secrets."""

    s3_secret: str
    image_pull_secret: str


def place(tasks: tuple[PipelineTask, ...], image: str, resources: Resources, access: Access) -> None:
    """Give tasks their image, their resources and the store's credentials; keep KFP's own cache out of the way.

    KFP's cache never checks that an artifact still exists; a stage looks into the store itself and is done in a second.
    """
    for task in tasks:
        task.set_caching_options(False)
        task.set_container_image(image)
        task.set_cpu_request(resources.cpu).set_memory_limit(resources.memory)  # a limit is a request too
        if resources.accelerator is not None:
            task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.num_accelerators)
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=SHM_SIZE)
            task.set_retry(NUM_RETRIES, backoff_duration=RETRY_AFTER, backoff_factor=2.0)
        else:
            kubernetes.set_timeout(task, LIGHT_TIMEOUT_SECONDS)
        kubernetes.empty_dir_mount(task, "tmp", "/tmp")  # scratch: on the node's disk, without a limit of its own
        kubernetes.add_node_selector_json(task, resources.nodes.node_selector)
        kubernetes.add_toleration_json(task, resources.nodes.tolerations)
        kubernetes.set_security_context(
            task, run_as_non_root=True
        )  # the user itself is the image's, or the cluster's choice
        kubernetes.set_image_pull_secrets(task, [access.image_pull_secret])
        kubernetes.use_secret_as_env(task, access.s3_secret, {key: key for key in S3_KEYS})
        kubernetes.use_secret_as_env(task, access.s3_secret, {key: key for key in S3_OPTIONAL_KEYS}, optional=True)


def give_secret(tasks: tuple[PipelineTask, ...], secret: str, key: str) -> None:
    """Put one optional key of a secret into the tasks' environment, under the key's own name."""
    for task in tasks:
        kubernetes.use_secret_as_env(task, secret, {key: key}, optional=True)


def tell_who_they_are(tasks: tuple[PipelineTask, ...]) -> None:
    """Put the pod's own name, uid and namespace into the tasks' environment."""
    for task in tasks:
        for name, path in POD_FIELDS.items():
            kubernetes.use_field_path_as_env(task, name, path)
