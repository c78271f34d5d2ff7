"""Adapter of reasongenrm.reasons.score.score_reasons and reasongenrm.reasons.select.select_preferences."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def select_preferences(model: str, prompts: str, reasons: str, preferences: dsl.OutputPath(str)) -> None:
    """Score the model's own reasons under itself, and choose a chosen and a rejected one of each prompt for DPO."""
    from reasongenrm.reasons.score import score_reasons
    from reasongenrm.reasons.select import select_preferences as stage
    from reasongenrm.runs.task import Task

    with Task("score_reasons (of the policy)", preferences, model=model, prompts=prompts, reasons=reasons) as task:
        scored = task.publish(score_reasons(task.store, task.config.score, *task.inputs.values()))
    with Task("select_preferences", preferences, prompts=prompts, scored=scored) as task:
        task.publish(stage(task.store, task.config.preferences, *task.inputs.values()))
