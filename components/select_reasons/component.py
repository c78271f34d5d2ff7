"""Adapter of reasongenrm.reasons.score.score_reasons and reasongenrm.reasons.select.select_reasons."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def select_reasons(model: str, prompts: str, reasons: str, examples: dsl.OutputPath(str)) -> None:
    """Score the teacher's reasons under the base model, and keep the best one of each prompt (R*): examples for SFT."""
    from reasongenrm.reasons.score import score_reasons
    from reasongenrm.reasons.select import select_reasons as stage
    from reasongenrm.runs.task import Task

    with Task("score_reasons (of the teacher)", examples, model=model, prompts=prompts, reasons=reasons) as task:
        scored = task.publish(score_reasons(task.store, task.config.score, *task.inputs.values()))
    with Task("select_reasons", examples, prompts=prompts, scored=scored) as task:
        task.publish(stage(task.store, task.config.select, *task.inputs.values()))
