"""One YAML file per run, one section per stage. Defaults are the reference's numbers, with sources.

The reference is Freder-chen/ReasonGenRM at commit 0887f2e and arXiv 2506.16712; small runs change values in
`pipelines/configs/*.yaml`, never code. KFP hands every number in a dict over as a float: pydantic turns 8.0 back into 8
and refuses 8.5. Unknown keys are errors.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from reasongenrm.errors import ConfigError
from reasongenrm.variants import VARIANTS, VariantName

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Dtype = Literal["auto", "float32", "bfloat16"]
ScoreDtype = Dtype | Literal["float64"]
Probability = Annotated[float, Field(ge=0, le=1)]
# Pattern of resource.Quantity in the published CRDs, without its exponents.
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[mkMGTPE])?$")]


def _pinned(image: str) -> str:
    """KFP and Kubernetes treat two images of one name as the same image."""
    tag = image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        raise ValueError("expected an image with a tag or digest that never moves, such as registry.example/judge:7")
    return image


Image = Annotated[str, AfterValidator(_pinned)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values do not change.

    Attributes:
        placement: fields that say where, with how many processes and in what portions a stage works, not what it makes.
            They are no part of a stage's key: the work of one pod goes on in another kind of pod.
        newer: fields that came after the first release. At their defaults they are no part of a stage's key: what was
            made before them is found again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    placement: ClassVar[frozenset[str]] = frozenset()
    newer: ClassVar[frozenset[str]] = frozenset()


class EndpointConfig(Section):
    """What is known beforehand of an endpoint. What it turns out to lack is left out, and said, without this, too."""

    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # what it calls the limit of tokens
    temperature: bool = True  # False: it draws at its own temperature alone, and is not told one
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 20  # the most that it gives at a token; 0: no log-probabilities
    # Share of a call's requests that may be refused or too long, in [0, 1]; more of them end the stage.
    max_failed_fraction: Probability = 0.1


class EngineConfig(Section):
    """How text is generated, in any stage. An `http(s)://` teacher or judge always uses the endpoint engine."""

    placement: ClassVar[frozenset[str]] = frozenset({"data_parallel_size", "endpoint"})

    kind: Literal["transformers", "vllm"] = "vllm"  # for a checkpoint; the laptop's configs say transformers
    dtype: Dtype = "auto"
    batch_size: PositiveInt = 16  # prompts x samples in one transformers batch; a resumable unit for every engine
    max_model_len: PositiveInt | None = None  # None: what the model's own config says
    concurrency: PositiveInt = 32  # requests in flight (endpoint)
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0  # of one request (endpoint)
    max_retries: Annotated[int, Field(ge=0)] = 5  # of one request on 429, 5xx and time-outs (endpoint)
    endpoint: EndpointConfig = EndpointConfig()
    tensor_parallel_size: PositiveInt = 1  # GPUs that share one copy of the model (vLLM)
    data_parallel_size: PositiveInt | None = None  # copies (vLLM); None: as many as the visible GPUs have room for
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9  # vLLM


class ModelConfig(Section):
    """import_model: the checkpoint that everything starts from."""

    revision: str | None = None  # of a hub model; None: the newest, whose commit is recorded
    # None: told from the tokenizer's tokens; else for a model whose template is this family's, but not its tokens.
    chat_family: Literal["chatml", "qwen2.5", "qwen3", "llama3", "gemma3", "phi4"] | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # how a GGUF file is saved; a folder keeps its own


class PairsConfig(Section):
    """prepare_pairs: preference rows to judge prompts."""

    order: Literal["mirrored", "random"] = "mirrored"  # both orders of a pair, or one drawn by a seeded coin
    limit: PositiveInt | None = None  # the most pairs, taken after a seeded shuffle
    max_prompt_tokens: PositiveInt | None = None  # longer judge prompts are dropped (counted)
    bad_rows: Literal["error", "drop"] = "error"  # a row that cannot be read: stop, or drop it (counted by cause)
    seed: int = 0
    # A stage's key leaves the following out where they are the default, so that the keys of before them stay.
    # Of a data set on the hub:
    split: Annotated[str, Field(exclude_if=lambda split: split == "train")] = "train"
    subset: Annotated[str | None, Field(exclude_if=lambda subset: subset is None)] = None  # None: its only or first one
    # The file's own names of columns that a format of docs/data.md has, such as {prompt: question, chosen: good}.
    columns: Annotated[dict[str, str], Field(exclude_if=lambda columns: not columns)] = {}
    # Of a list of answers: the best with each worse one, or each with the next.
    ranked: Annotated[Literal["best", "neighbours"], Field(exclude_if=lambda ranked: ranked == "best")] = "best"
    # The least difference of two answers' scores, or strength of a preference, that counts.
    margin: Annotated[float, Field(ge=0, exclude_if=lambda margin: not margin)] = 0.0


class WriteConfig(Section):
    """What the two stages that have reasons written share."""

    num_samples: PositiveInt = 16  # reference: 16 samples per prompt in all
    temperature: Annotated[float, Field(ge=0)] = 1.0  # reference
    top_p: Probability = 1.0  # reference
    max_tokens: PositiveInt = 8192  # reference
    min_reason_chars: PositiveInt = 8  # a shorter reason is dropped (counted)
    seed: int = 0
    engine: EngineConfig = EngineConfig()


class DistillConfig(WriteConfig):
    """distill_reasons: the teacher writes reasons, knowing the right verdict (docs/method.md, section 1)."""

    newer: ClassVar[frozenset[str]] = frozenset({"keep_thoughts"})

    teacher_model: str | None = None  # name to ask an endpoint for; None: the only one it lists
    keep_thoughts: bool = False  # what a teacher thinks before it answers (<think>) is part of its reason


class ScoreConfig(Section):
    """score_reasons: P(R|U) and P(A|U,R), for R* and for DPO pairs (docs/method.md, section 2)."""

    placement: ClassVar[frozenset[str]] = frozenset({"data_parallel_size"})

    max_batch_tokens: PositiveInt = 16384  # prompt + reasons of one forward pass
    max_length: PositiveInt = 131072  # longer sequences are dropped (counted)
    dtype: ScoreDtype = "auto"
    data_parallel_size: PositiveInt | None = None  # copies of the model; None: one a visible GPU, 1 without GPUs


class SelectConfig(Section):
    """Which reason becomes R* (docs/method.md, section 2)."""

    # The reference code's P(R|U)(2P(A|U,R)-1), or the paper's P(R|U)P(A|U,R).
    formula: Literal["signed", "product"] = "signed"
    min_score: Annotated[float, Field(ge=-1, le=1)] = 0.1  # reference: kept if the score > 0.1


class Toleration(Section):
    """A taint that a pod may be placed on in spite of: as in a Pod's spec.tolerations, with Kubernetes' own names."""

    key: str | None = None  # None with operator Exists: every taint
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None  # None: every effect
    tolerationSeconds: Annotated[int, Field(ge=0)] | None = None


class TrainJobConfig(Section):
    """Where a training with `mode: trainjob` runs: separate pods, made by Kubeflow Trainer."""

    num_nodes: PositiveInt = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 8  # also the processes of a node; 0: `num_processes` on CPUs
    gpu_resource: str = "nvidia.com/gpu"
    cpu: Quantity = "32"  # of one node
    memory: Quantity = "256Gi"  # of one node
    runtime: str = "reasongenrm-torch"  # a TrainingRuntime in the run's namespace: image, volumes, security context
    image: str | None = None  # None: the runtime's
    queue: str | None = None  # a Kueue LocalQueue
    s3_secret: str = "reasongenrm-s3"
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    failing_pod_seconds: Annotated[float, Field(ge=0)] = 60.0  # without the image or a Secret
    report_seconds: Annotated[float, Field(gt=0)] = 60.0  # between two log lines about what the step waits for


class TrainConfig(Section):
    """What SFT and DPO share. `train_batch_size` counts examples (pairs) of an optimizer step, over all processes."""

    learning_rate: Annotated[float, Field(gt=0)]
    num_train_epochs: Annotated[float, Field(gt=0)]
    train_batch_size: PositiveInt = 128  # reference
    # Of one forward pass of one process; a longer example is one by itself. "auto": as many as keep a GPU busy and fit
    # into it.
    max_batch_tokens: Literal["auto"] | PositiveInt = "auto"
    max_steps: int = -1  # -1: num_train_epochs decides
    max_length: PositiveInt
    lr_scheduler_type: str = "cosine"
    warmup_ratio: Probability = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optim: str = "adamw_torch_fused"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # reference: bf16
    # Computes activations twice to keep less of them; "auto": where they would not fit. Reference: always.
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    save_steps: PositiveInt = 50  # a checkpoint to resume from, kept until the model is whole
    logging_steps: PositiveInt = 1
    # Trackers that get each logged step as it comes, set up by their own environment variables (docs/training.md).
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    num_processes: PositiveInt | None = None  # on this node; None: one a visible GPU, 1 without GPUs
    sharding: Literal["none", "zero2", "zero3", "fsdp2"] = "none"  # over all processes (reference: DeepSpeed ZeRO-3)
    seed: int = 0
    mode: Literal["pod", "trainjob"] = "pod"  # in this pod (or on this machine), or in pods that Kubeflow Trainer makes
    trainjob: TrainJobConfig = TrainJobConfig()

    placement = frozenset(
        {"mode", "trainjob", "num_processes", "max_batch_tokens", "gradient_checkpointing", "report_to"}
    )


class SFTConfig(TrainConfig):
    """train_sft, variants GenRM and ReasonGenRM (docs/method.md, section 3)."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6  # reference
    num_train_epochs: Annotated[float, Field(gt=0)] = 2.0  # reference
    max_length: PositiveInt = 131072  # reference; GenRM: 32,768
    mask: Literal["one_generation", "reference"] = "one_generation"  # docs/method.md, section 3, "On purpose different"


class SampleConfig(WriteConfig):
    """sample_reasons: the SFT model writes reasons without seeing the verdict (docs/method.md, section 4)."""

    limit: PositiveInt | None = None  # the most judge prompts, taken after a seeded shuffle


Strategy = Literal[
    "correct_fluent+incorrect_fluent",
    "correct_fluent+incorrect_influent",
    "correct_fluent+random_incorrect",
    "correct_influent+incorrect_fluent",
    "random+random",
]


class PreferencesConfig(Section):
    """Which two reasons of a prompt become a DPO pair (docs/method.md, section 5)."""

    strategy: Strategy = "correct_fluent+incorrect_fluent"  # reference's default
    chosen_above: Annotated[float, Field(ge=-1, le=1)] = 0.1  # reference
    rejected_below: Annotated[float, Field(ge=-1, le=1)] = -0.1  # reference
    seed: int = 0


class ReferenceConfig(Section):
    """What DPO's reference log-probabilities depend on besides model and pairs; DPOConfig says what the values mean."""

    max_length: PositiveInt
    dtype: Literal["bfloat16", "float32"]


class DPOConfig(TrainConfig):
    """train_dpo (docs/method.md, section 6). The reference model is the SFT model."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-7  # reference
    num_train_epochs: Annotated[float, Field(gt=0)] = 1.0  # reference
    max_length: PositiveInt = 131072
    beta: Annotated[float, Field(gt=0)] = 0.1  # reference
    loss_type: Literal["sigmoid"] = "sigmoid"  # reference


class EvaluateConfig(Section):
    """evaluate_rewardbench (docs/method.md, section 7)."""

    max_tokens: PositiveInt = 8192
    votes: PositiveInt = 1  # 1: greedy; more: majority of the samples at `vote_temperature`
    vote_temperature: Annotated[float, Field(gt=0)] = 1.0
    limit: PositiveInt | None = None  # rows, spread over the subsets in proportion
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    two_step: bool = False  # the reference's way: reason and verdict in two requests
    seed: int = 0
    engine: EngineConfig = EngineConfig()
    # The benchmark's own names of columns, as `pairs.columns`; left out of the key where there are none.
    columns: Annotated[dict[str, str], Field(exclude_if=lambda columns: not columns)] = {}


class GateConfig(Section):
    """select_winner: the best candidate, and whether it is good enough to serve."""

    candidates: tuple[VariantName, ...] = tuple(variant.name for variant in VARIANTS.values() if variant.is_candidate)
    min_accuracy_low: Probability = 0.6  # lower end of the accuracy's interval
    min_consistent_fraction: Probability = 0.6  # rows whose two orders agree on the answer
    max_unparsed_fraction: Probability = 0.05
    beat_base: bool = True  # accuracy above the base model's
    beat_champion: bool = True  # accuracy above that of the judge that is served now, if there is one


class JudgeServerConfig(Section):
    """deploy_kserve: the judge's server in front of the served model, KServe's transformer; how it asks is the
    variant's."""

    enabled: bool = True  # false: clients ask the model itself, with prompts of their own
    image: str | None = None  # None: the run's cpu image
    replicas: PositiveInt = 1
    cpu: str = "1"
    memory: str = "1Gi"
    max_concurrency: PositiveInt = 64  # generations in flight per replica; when its queue is full, it answers 429
    max_tokens: PositiveInt = 2048  # of one generation
    generation_seconds: Annotated[float, Field(ge=0.1)] = 120.0  # time limit of one generation
    request_seconds: Annotated[float, Field(ge=0.1)] = 600.0  # and of one request


class DeployConfig(Section):
    """deploy_kserve: the InferenceService of the winner, and when the new judge counts as served."""

    # Of the Service that clients ask; the InferenceService behind it is called <name>-<rollout revision>.
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")] = "reasongenrm"
    namespace: str = "reasongenrm"
    apply: bool = True  # false: the manifest is rendered, no cluster is asked
    service_account: str = "reasongenrm-serving"
    # registry.example/team/judges: the pods mount the checkpoint from an image in this repository, which
    # `make model-image` builds, instead of downloading it from the store
    model_image: str | None = None
    runtime: str = "reasongenrm-vllm"  # the ServingRuntime or LLMInferenceServiceConfig, in the same namespace
    server: Literal["vllm", "transformers"] = "vllm"  # what that runtime starts: vLLM, or `reasongenrm serve`
    judge: JudgeServerConfig = JudgeServerConfig()
    judge_secret: str | None = None  # has VLLM_API_KEY and JUDGE_API_KEY; None: reasongenrm-judge, if it is there
    gpu_resource: str = "nvidia.com/gpu"
    gpu_count: Annotated[int, Field(ge=0)] = 1  # of one replica; vLLM spreads the model over all of them
    cpu: str = "4"
    memory: str = "32Gi"
    max_model_len: PositiveInt = 32768
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    autoscaler: Literal["hpa", "keda", "none"] = "hpa"  # keda: by the requests that wait in vLLM's queue
    prometheus: str | None = None  # http(s)://host[:port]; autoscaler keda asks it
    # What serves the model: an InferenceService, or an LLMInferenceService (v0.20) behind a judge's server of our own.
    target: Literal["inferenceservice", "llminferenceservice"] = "inferenceservice"
    # BlueGreen keeps the judge of before until the new one is proven, and needs room for both; Recreate ends it first.
    strategy: Literal["BlueGreen", "Recreate"] = "BlueGreen"
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0  # between the switch to the new judge and the end of the old
    rollout_timeout_seconds: Annotated[float, Field(gt=0)] = 3600.0  # 28 GiB of a 14B model, image and start included
    num_golden: PositiveInt = 8  # rows of the winner's own evaluation that the new pods judge, in both orders
    min_golden_agreement: Probability = 0.75  # another engine or GPU changes some greedy tokens; 0: any answer will do
    golden_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0  # of one request
    golden_endpoint: str | None = None  # http(s)://host[:port] that leads to the new pods; None: what KServe reports
    # http(s)://host[:port] of Kubeflow Model Registry, where the winner is registered; its token: MODEL_REGISTRY_TOKEN
    model_registry: str | None = None

    def with_judge_image(self, image: str) -> "DeployConfig":
        """The same settings, with this image for the judge's server if they name none."""
        if self.judge.image is not None or not self.judge.enabled:
            return self
        return self.model_copy(update={"judge": self.judge.model_copy(update={"image": image})})


class InputsConfig(Section):
    """What a run starts from, where the file says it; `run` and `submit` let their own options go first."""

    preferences: str | None = None
    benchmark: str | None = None
    model: str | None = None
    teacher: str | None = None  # None: the base model itself


class ResourcesConfig(Section):
    """What a cluster gives the tasks, by class of tasks; a run on one machine ignores it. Secrets go by name, never by
    value.

    Light tasks (data, decisions) need no accelerator. `accelerator_*` is for teacher, sampling, scoring and evaluation,
    `train_*` for the training pods; with `mode: trainjob` these only start and follow a TrainJob and need no
    accelerator.
    """

    accelerator: str = "nvidia.com/gpu"  # the resource's name, as the nodes' device plugin announces it
    num_accelerators: NonNegativeInt = 1  # of a sampling, scoring or evaluation task
    num_teacher_accelerators: NonNegativeInt = 1  # of distill_reasons; 0: the teacher is an endpoint
    num_train_accelerators: NonNegativeInt = 1  # of a training pod
    accelerator_cpu: Quantity = "8"
    accelerator_memory: Quantity = "64Gi"
    train_cpu: Quantity = "8"
    train_memory: Quantity = "64Gi"
    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    accelerator_node_selector: dict[str, str] = {}  # for training pods as well
    accelerator_tolerations: tuple[Toleration, ...] = ()
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    s3_secret: str = "reasongenrm-s3"
    teacher_secret: str = "reasongenrm-teacher"
    hub_secret: str = "reasongenrm-hub"
    judge_secret: str = "reasongenrm-judge"
    image_pull_secret: str = "reasongenrm-registry"  # need not exist: kubelet then pulls without
    cpu_image: Image | None = None  # None: that of components/images, as compiled; so for the other two
    train_image: Image | None = None
    vllm_image: Image | None = None

    @model_validator(mode="after")
    def _secrets_differ(self) -> "ResourcesConfig":
        """A pod that mounts one secret twice is refused by the API server, when the run has long started."""
        secrets = [self.s3_secret, self.teacher_secret, self.hub_secret, self.judge_secret]
        twice = sorted({name for name in secrets if secrets.count(name) > 1})
        if twice:
            raise ValueError(
                f"{', '.join(twice)} is named for several of s3_secret, teacher_secret, hub_secret and judge_secret; "
                "each needs a secret of its own"
            )
        return self


class RunConfig(Section):
    """A whole run, section by section in the order of the data flow; `inputs` and `resources` are no stage's."""

    model: ModelConfig = ModelConfig()
    pairs: PairsConfig = PairsConfig()
    distill: DistillConfig = DistillConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    genrm: SFTConfig = SFTConfig(max_length=32768)
    sft: SFTConfig = SFTConfig()
    sample: SampleConfig = SampleConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    dpo: DPOConfig = DPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    deploy: DeployConfig = DeployConfig()
    inputs: InputsConfig = InputsConfig()
    resources: ResourcesConfig = ResourcesConfig()

    def stages(self) -> dict[str, Section]:
        """The stages' sections by name."""
        return {name: section for name, section in self if name not in ("inputs", "resources")}

    def changes(self) -> dict[str, Any]:
        """What the stages' sections change of the defaults, as the pipeline takes it: KFP repeats its arguments in a
        run's state, so they are to be short."""
        found: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True, exclude={"inputs", "resources"})
        return found


S = TypeVar("S", bound=Section)


def parse_section(kind: type[S], values: dict[str, Any], where: str) -> S:
    """Validate one section; every mistake is named with its key, its value and, for a typo, the key that was meant.

    Raises:
        ConfigError: a key is unknown or a value does not fit; all mistakes in one message.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        mistakes: dict[str, list[Any]] = {}
        for detail in error.errors():
            mistakes.setdefault(_key(values, detail), []).append(detail)
        raise ConfigError(f"{where}: " + "; ".join(_explain(kind, *mistake) for mistake in mistakes.items())) from error


def _key(values: Any, detail: Any) -> str:
    """Where a mistake is, in the file's own keys: pydantic also names the kinds of value that a key may have."""
    path = []
    for part in detail["loc"]:
        if isinstance(values, Mapping | Sequence) and not isinstance(values, str):
            there = part in values if isinstance(values, Mapping) else isinstance(part, int) and part < len(values)
            if not there and detail["type"] != "missing":
                continue
            path.append(str(part))
            values = values[part] if there else None
    return ".".join(path)


def _explain(kind: type[BaseModel], key: str, details: Sequence[Any]) -> str:
    """One mistake; several details are the kinds of value that the key may have, none of which fits."""
    detail = details[0]
    if detail["type"] == "extra_forbidden":
        names = _names_at(kind, detail["loc"][:-1])
        close = difflib.get_close_matches(str(detail["loc"][-1]), names, n=1)
        meant = f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(names)}."
        return f"unknown key '{key}'; {meant}"
    if detail["type"] == "missing":
        return f"'{key}' is missing; give it a value"
    messages = [detail["msg"][0].lower() + detail["msg"][1:] for detail in details]
    return f"'{key}' is {detail['input']!r}: {', or '.join(messages)}"


def _names_at(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the (nested) section at `path`, which may lead through a list of sections."""
    for part in path:
        if isinstance(part, str):
            annotation = kind.model_fields[part].annotation
            kinds = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
            (kind,) = (one for one in kinds if issubclass(one, BaseModel))
    return list(kind.model_fields)


def load_config(path: Path | None) -> RunConfig:
    """Read a run's YAML file; None gives the reference's defaults.

    Raises:
        ConfigError: the file is missing, is not YAML, is not a mapping, or has an unknown key or a value that does not
            fit.
    """
    if path is None:
        return RunConfig()
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such config file; expected YAML like pipelines/configs/demo.yaml. Give --config an existing "
            "file."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}. Fix the file.") from error
    if values is None:
        return RunConfig()
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: found a {type(values).__name__}, expected a mapping of sections: "
            f"{', '.join(RunConfig.model_fields)}."
        )
    return parse_section(RunConfig, values, str(path))
