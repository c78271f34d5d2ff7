"""Adapter of reasongenrm.reasons.select.select_reasons."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def select_reasons(
    store_uri: str,
    config: dict,
    prompts: dsl.Input[dsl.Dataset],
    scored: dsl.Input[dsl.Dataset],
    examples: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Keep the best reason of each prompt (R*) if its score is high enough: the examples for SFT."""
    from reasongenrm.config import SelectConfig
    from reasongenrm.reasons.select import select_reasons as stage
    from reasongenrm.runs.task import Task

    with Task("select_reasons", store_uri, examples) as task:
        task.publish(
            stage(task.store, task.section(SelectConfig, config), task.input(prompts), task.input(scored)),
            summary=summary,
        )
