"""Adapter of reasongenrm.reasons.select.select_preferences."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def select_preferences(
    store_uri: str,
    config: dict,
    prompts: dsl.Input[dsl.Dataset],
    scored: dsl.Input[dsl.Dataset],
    preferences: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Choose a chosen and a rejected reason for each prompt: the pairs for DPO."""
    from reasongenrm.config import PreferencesConfig
    from reasongenrm.reasons.select import select_preferences as stage
    from reasongenrm.runs.task import Task

    with Task("select_preferences", store_uri, preferences) as task:
        inputs = (task.input(prompts), task.input(scored))
        task.publish(stage(task.store, task.section(PreferencesConfig, config), *inputs), summary=summary)
