"""The pipeline: preference pairs in, a judge that writes reasons out. Read this file first.

    pairs -> reasons -> scored -> SFT -> on-policy reasons -> scored -> DPO -> evaluation -> decision -> deployment

One definition for a laptop (`reasongenrm run`) and a cluster (`pipelines/compiled/reason_reward_model.yaml`): the
runner differs, nothing else. What travels between the tasks is the address of a reference in the store
(reasongenrm/runs/references.py); the first task writes the run's settings there, for all the others.
"""

# ruff: noqa: B006 - KFP reads the parameters' defaults once, nobody changes them

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from reasongenrm.components import images
from reasongenrm.components.deploy_kserve.component import deploy_kserve
from reasongenrm.components.distill_reasons.component import distill_reasons
from reasongenrm.components.evaluate_rewardbench.component import evaluate_rewardbench
from reasongenrm.components.prepare_pairs.component import prepare_pairs
from reasongenrm.components.sample_reasons.component import sample_reasons
from reasongenrm.components.select_preferences.component import select_preferences
from reasongenrm.components.select_reasons.component import select_reasons
from reasongenrm.components.select_winner.component import select_winner
from reasongenrm.components.train_dpo.component import train_dpo
from reasongenrm.components.train_sft.component import train_sft
from reasongenrm.config import ResourcesConfig
from reasongenrm.pipelines.resources import DEPLOYMENT, Placement

NAME, DESCRIPTION = "reason-reward-model", "Preference pairs in, a judge that writes reasons out."
NUM_STAGES = 17  # a task may work on several; what a local run counts


def reason_reward_model(resources: ResourcesConfig) -> GraphComponent:
    """The pipeline for a cluster that gives its tasks these resources; a local run ignores them."""
    cpu_image = resources.cpu_image or images.CPU

    @dsl.pipeline(name=NAME, description=DESCRIPTION)
    def pipeline(
        store_uri: str,
        preferences_uri: str,
        benchmark_uri: str,
        model_uri: str,
        teacher_uri: str,
        config: dict = {},
    ) -> None:
        """Distil reasons, train GenRM, ReasonGenRM-sft and ReasonGenRM-dpo, judge a benchmark with all, deploy the
        winner."""
        # Preference pairs become judge prompts; the teacher, who knows the verdicts, writes reasons for them.
        prepared = prepare_pairs(
            store_uri=store_uri,
            preferences_uri=preferences_uri,
            benchmark_uri=benchmark_uri,
            model_uri=model_uri,
            teacher_uri=teacher_uri,
            config=config,
        )
        base_model, prompts = prepared.outputs["base_model"], prepared.outputs["prompts"]
        distilled = distill_reasons(prompts=prompts)

        # The base model scores the reasons; the best reason of a prompt is R*.
        selected = select_reasons(model=base_model, prompts=prompts, reasons=distilled.output)
        examples = selected.output

        # SFT twice on the same prompts: verdicts alone, reasons and verdicts.
        genrm_trained = train_sft(variant="genrm", model=base_model, examples=examples)
        genrm_trained.set_display_name("train_sft (genrm)")
        sft_trained = train_sft(variant="sft", model=base_model, examples=examples)
        sft_trained.set_display_name("train_sft (sft)")
        sft_model = sft_trained.outputs["trained_model"]

        # The SFT model's own reasons, scored by itself, become preferences for DPO.
        sampled = sample_reasons(model=sft_model, prompts=prompts)
        preferred = select_preferences(model=sft_model, prompts=prompts, reasons=sampled.output)
        dpo_trained = train_dpo(model=sft_model, preferences=preferred.output)

        # All four variants judge the benchmark; the gate looks at more than one number.
        evaluated = evaluate_rewardbench(
            base_model=base_model,
            genrm_model=genrm_trained.outputs["trained_model"],
            sft_model=sft_model,
            dpo_model=dpo_trained.outputs["trained_model"],
        )
        decided = select_winner(**{variant: evaluated.outputs[variant] for variant in ("base", "genrm", "sft", "dpo")})
        deployed = deploy_kserve(judge_image=cpu_image, decision=decided.outputs["decision"])

        # Everything below is for a cluster; a local run ignores it.
        place = Placement(resources)
        place.light(prepared, image="train", hub=True)
        place.light(decided, image="cpu")
        place.light(deployed, image="cpu", resources=DEPLOYMENT, secrets=(resources.judge_secret,))
        place.heavy(distilled, image="vllm", hub=True, secrets=(resources.teacher_secret,), teacher=True)
        place.heavy(sampled, image="vllm")
        place.heavy(evaluated, image="vllm", hub=True)
        for task in (selected, preferred):
            place.heavy(task, image="train")
        for task in (genrm_trained, sft_trained, dpo_trained):
            place.training(task)

    return pipeline
