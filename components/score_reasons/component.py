"""Adapter of reasongenrm.reasons.score.score_reasons."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def score_reasons(
    store_uri: str,
    config: dict,
    model: dsl.Input[dsl.Model],
    prompts: dsl.Input[dsl.Dataset],
    reasons: dsl.Input[dsl.Dataset],
    scored: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Score each reason under a model: its fluency, signed by whether it leads to the labelled verdict."""
    from reasongenrm.config import ScoreConfig
    from reasongenrm.reasons.score import score_reasons as stage
    from reasongenrm.runs.task import Task

    with Task("score_reasons", store_uri, scored) as task:
        inputs = (task.input(model), task.input(prompts), task.input(reasons))
        task.publish(stage(task.store, task.section(ScoreConfig, config), *inputs), summary=summary)
