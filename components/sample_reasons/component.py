"""Adapter of reasongenrm.reasons.write.sample_reasons."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.VLLM, install_kfp_package=False)
def sample_reasons(
    store_uri: str,
    config: dict,
    model: dsl.Input[dsl.Model],
    prompts: dsl.Input[dsl.Dataset],
    reasons: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Let the SFT model write reasons without seeing the verdict (on-policy)."""
    from reasongenrm.config import SampleConfig
    from reasongenrm.reasons.write import sample_reasons as stage
    from reasongenrm.runs.task import Task

    with Task("sample_reasons", store_uri, reasons) as task:
        task.publish(
            stage(task.store, task.section(SampleConfig, config), task.input(model), task.input(prompts)),
            summary=summary,
        )
