"""Adapter of reasongenrm.data.pairs.prepare_pairs."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def prepare_pairs(
    store_uri: str,
    preferences_uri: str,
    config: dict,
    model: dsl.Input[dsl.Model],
    prompts: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Turn preference rows into judge prompts, with every dropped row counted by cause."""
    from reasongenrm.config import PairsConfig
    from reasongenrm.data.pairs import prepare_pairs as stage
    from reasongenrm.runs.task import Task

    with Task("prepare_pairs", store_uri, prompts) as task:
        task.publish(
            stage(task.store, task.section(PairsConfig, config), preferences_uri, task.input(model)), summary=summary
        )
