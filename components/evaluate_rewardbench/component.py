"""Adapter of reasongenrm.evaluation.evaluate.evaluate_rewardbench."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.VLLM, install_kfp_package=False)
def evaluate_rewardbench(
    base_model: str,
    genrm_model: str,
    sft_model: str,
    dpo_model: str,
    base: dsl.OutputPath(str),
    genrm: dsl.OutputPath(str),
    sft: dsl.OutputPath(str),
    dpo: dsl.OutputPath(str),
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Have every variant judge every benchmark row in both orders, one after another on all accelerators of the pod."""
    from reasongenrm.evaluation.evaluate import evaluate_rewardbench as stage
    from reasongenrm.runs.task import Task

    models = {"base": base_model, "genrm": genrm_model, "sft": sft_model, "dpo": dpo_model}
    outputs = {"base": base, "genrm": genrm, "sft": sft, "dpo": dpo}
    for variant, model in models.items():
        with Task(f"evaluate_rewardbench ({variant})", outputs[variant], model=model) as task:
            benchmark_uri = task.uris.benchmark_uri
            ref = stage(task.store, task.config.evaluate, variant, task.inputs["model"], benchmark_uri)
            task.publish(ref, metrics, f"{variant}_")
