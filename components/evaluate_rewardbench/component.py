"""Adapter of reasongenrm.evaluation.evaluate.evaluate_rewardbench."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.VLLM, install_kfp_package=False)
def evaluate_rewardbench(
    store_uri: str,
    variant: str,
    benchmark_uri: str,
    config: dict,
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    verdicts: dsl.Output[dsl.ClassificationMetrics],
) -> None:
    """Have one variant judge every benchmark row in both orders."""
    from reasongenrm.config import EvaluateConfig
    from reasongenrm.evaluation.evaluate import evaluate_rewardbench as stage
    from reasongenrm.evaluation.evaluate import verdict_confusion
    from reasongenrm.runs.task import Task

    with Task("evaluate_rewardbench", store_uri, evaluation) as task:
        section = task.section(EvaluateConfig, config)
        ref = task.publish(stage(task.store, section, variant, task.input(model), benchmark_uri), metrics)
        verdicts.log_confusion_matrix(*verdict_confusion(ref))
