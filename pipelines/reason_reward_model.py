"""The pipeline: preference pairs in, a judge that writes reasons out. Read this file first.

    pairs -> reasons -> scored -> SFT -> on-policy reasons -> scored -> DPO -> evaluation -> decision -> deployment

One definition for a laptop (`reasongenrm run`) and a cluster (`pipelines/compiled/reason_reward_model.yaml`): runner
and parameters differ, nothing else. Each dict parameter up to `deploy` is one section of reasongenrm/config.py, where
its defaults have sources; the parameters after it are the section `resources`, key by key, so that the KFP UI shows
each by itself.
"""

# ruff: noqa: B006, B008 - KFP reads the parameters' defaults once, nobody changes them

from typing import Any

from kfp import dsl

from reasongenrm.components import images
from reasongenrm.components.deploy_kserve.component import deploy_kserve
from reasongenrm.components.distill_reasons.component import distill_reasons
from reasongenrm.components.evaluate_rewardbench.component import evaluate_rewardbench
from reasongenrm.components.import_model.component import import_model
from reasongenrm.components.prepare_pairs.component import prepare_pairs
from reasongenrm.components.sample_reasons.component import sample_reasons
from reasongenrm.components.score_reasons.component import score_reasons
from reasongenrm.components.select_preferences.component import select_preferences
from reasongenrm.components.select_reasons.component import select_reasons
from reasongenrm.components.select_winner.component import select_winner
from reasongenrm.components.train_dpo.component import train_dpo
from reasongenrm.components.train_sft.component import train_sft
from reasongenrm.config import RunConfig, Section
from reasongenrm.pipelines.resources import (
    DEPLOY_KEYS,
    HUB_KEY,
    TEACHER_KEY,
    Access,
    Nodes,
    Resources,
    give_secret,
    place,
    tell_who_they_are,
)


def parameters(section: Section) -> dict[str, Any]:
    """A config section as a pipeline parameter. KFP has no null: a key that is None by default is left out."""
    return section.model_dump(mode="json", exclude_none=True)


DEFAULTS = RunConfig()


@dsl.pipeline(name="reason-reward-model", description="Preference pairs in, a judge that writes reasons out.")
def reason_reward_model(
    store_uri: str,
    preferences_uri: str,
    benchmark_uri: str,
    model_uri: str,
    teacher_uri: str,
    model: dict = parameters(DEFAULTS.model),
    pairs: dict = parameters(DEFAULTS.pairs),
    distill: dict = parameters(DEFAULTS.distill),
    score: dict = parameters(DEFAULTS.score),
    select: dict = parameters(DEFAULTS.select),
    genrm: dict = parameters(DEFAULTS.genrm),
    sft: dict = parameters(DEFAULTS.sft),
    sample: dict = parameters(DEFAULTS.sample),
    preferences: dict = parameters(DEFAULTS.preferences),
    dpo: dict = parameters(DEFAULTS.dpo),
    evaluate: dict = parameters(DEFAULTS.evaluate),
    gate: dict = parameters(DEFAULTS.gate),
    deploy: dict = parameters(DEFAULTS.deploy),
    accelerator: str = DEFAULTS.resources.accelerator,
    num_accelerators: int = DEFAULTS.resources.num_accelerators,
    num_teacher_accelerators: int = DEFAULTS.resources.num_teacher_accelerators,
    num_train_accelerators: int = DEFAULTS.resources.num_train_accelerators,
    accelerator_cpu: str = DEFAULTS.resources.accelerator_cpu,
    accelerator_memory: str = DEFAULTS.resources.accelerator_memory,
    train_cpu: str = DEFAULTS.resources.train_cpu,
    train_memory: str = DEFAULTS.resources.train_memory,
    cpu: str = DEFAULTS.resources.cpu,
    memory: str = DEFAULTS.resources.memory,
    accelerator_node_selector: dict = DEFAULTS.resources.accelerator_node_selector,
    accelerator_tolerations: list = list(DEFAULTS.resources.accelerator_tolerations),
    node_selector: dict = DEFAULTS.resources.node_selector,
    tolerations: list = list(DEFAULTS.resources.tolerations),
    s3_secret: str = DEFAULTS.resources.s3_secret,
    teacher_secret: str = DEFAULTS.resources.teacher_secret,
    hub_secret: str = DEFAULTS.resources.hub_secret,
    judge_secret: str = DEFAULTS.resources.judge_secret,
    image_pull_secret: str = DEFAULTS.resources.image_pull_secret,
    cpu_image: str = images.CPU,
    train_image: str = images.TRAIN,
    vllm_image: str = images.VLLM,
) -> None:
    """Distil reasons, train GenRM, ReasonGenRM-sft and ReasonGenRM-dpo, judge a benchmark with all, deploy the
    winner."""
    # Preference pairs become judge prompts; the teacher, who knows the verdicts, writes reasons for them.
    base = import_model(store_uri=store_uri, model_uri=model_uri, config=model)
    base_model = base.outputs["base_model"]
    paired = prepare_pairs(store_uri=store_uri, preferences_uri=preferences_uri, config=pairs, model=base_model)
    prompts = paired.outputs["prompts"]
    distilled = distill_reasons(store_uri=store_uri, teacher_uri=teacher_uri, config=distill, prompts=prompts)

    # The base model scores the reasons; the best reason of a prompt is R*.
    scored = score_reasons(
        store_uri=store_uri, config=score, model=base_model, prompts=prompts, reasons=distilled.outputs["reasons"]
    )
    scored.set_display_name("score_reasons (of the teacher)")
    selected = select_reasons(store_uri=store_uri, config=select, prompts=prompts, scored=scored.outputs["scored"])
    examples = selected.outputs["examples"]

    # SFT twice on the same prompts: verdicts alone, reasons and verdicts.
    genrm_trained = train_sft(store_uri=store_uri, variant="genrm", config=genrm, model=base_model, examples=examples)
    genrm_trained.set_display_name("train_sft (genrm)")
    genrm_model = genrm_trained.outputs["trained_model"]
    sft_trained = train_sft(store_uri=store_uri, variant="sft", config=sft, model=base_model, examples=examples)
    sft_trained.set_display_name("train_sft (sft)")
    sft_model = sft_trained.outputs["trained_model"]

    # The SFT model's own reasons, scored by itself, become preferences for DPO.
    sampled = sample_reasons(store_uri=store_uri, config=sample, model=sft_model, prompts=prompts)
    on_policy_scored = score_reasons(
        store_uri=store_uri, config=score, model=sft_model, prompts=prompts, reasons=sampled.outputs["reasons"]
    )
    on_policy_scored.set_display_name("score_reasons (of the policy)")
    preferred = select_preferences(
        store_uri=store_uri, config=preferences, prompts=prompts, scored=on_policy_scored.outputs["scored"]
    )
    dpo_trained = train_dpo(
        store_uri=store_uri, config=dpo, model=sft_model, preferences=preferred.outputs["preferences"]
    )
    dpo_model = dpo_trained.outputs["trained_model"]

    # All four variants judge the benchmark; the gate looks at more than one number.
    models = {"base": base_model, "genrm": genrm_model, "sft": sft_model, "dpo": dpo_model}
    evaluations = {
        variant: evaluate_rewardbench(
            store_uri=store_uri, variant=variant, benchmark_uri=benchmark_uri, config=evaluate, model=variant_model
        ).set_display_name(f"evaluate_rewardbench ({variant})")
        for variant, variant_model in models.items()
    }
    decided = select_winner(
        store_uri=store_uri,
        config=gate,
        deploy=deploy,
        genrm_model=genrm_model,
        sft_model=sft_model,
        dpo_model=dpo_model,
        **{f"{variant}_evaluation": task.outputs["evaluation"] for variant, task in evaluations.items()},
    )
    # A plain return value ("Output"): a condition on a named output is always false in a local run.
    with dsl.If(decided.outputs["Output"] == True):  # noqa: E712 - KFP turns the comparison into a condition
        deployed = deploy_kserve(
            store_uri=store_uri,
            config=deploy,
            judge_image=cpu_image,
            decision=decided.outputs["decision"],
            **{f"{variant}_model": variant_model for variant, variant_model in models.items()},
        )

    # Everything below is for a cluster; a local run ignores it.
    access = Access(s3_secret, image_pull_secret)
    nodes = Nodes(node_selector, tolerations)
    accelerated = Nodes(accelerator_node_selector, accelerator_tolerations)
    light = Resources(cpu, memory, nodes)
    generating = Resources(accelerator_cpu, accelerator_memory, accelerated, accelerator, num_accelerators)
    teaching = Resources(accelerator_cpu, accelerator_memory, accelerated, accelerator, num_teacher_accelerators)
    training = Resources(train_cpu, train_memory, accelerated, accelerator, num_train_accelerators)
    place((paired, selected, preferred, decided), cpu_image, light, access)
    place((base,), train_image, light, access)
    place((distilled,), vllm_image, teaching, access)
    place((sampled, *evaluations.values()), vllm_image, generating, access)
    place((scored, on_policy_scored), train_image, generating, access)
    place((genrm_trained, sft_trained, dpo_trained), train_image, training, access)
    # Fixed amounts: KFP 2.17 does not hand a parameter that only CPU or memory uses into a condition. The task waits
    # for the cluster and asks the judge: it holds some 150 MiB, KFP's launcher in the same container some 60 MiB.
    place((deployed,), cpu_image, Resources("100m", "512Mi", nodes), access)
    give_secret((distilled,), teacher_secret, TEACHER_KEY)
    give_secret((base, paired, distilled, *evaluations.values()), hub_secret, HUB_KEY)
    for key in DEPLOY_KEYS:
        give_secret((deployed,), judge_secret, key)
    tell_who_they_are((genrm_trained, sft_trained, dpo_trained, deployed))
