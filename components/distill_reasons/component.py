"""Adapter of reasongenrm.reasons.write.distill_reasons."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.VLLM, install_kfp_package=False)
def distill_reasons(
    store_uri: str,
    teacher_uri: str,
    config: dict,
    prompts: dsl.Input[dsl.Dataset],
    reasons: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Let the teacher, who is told the right verdict, write reasons for each judge prompt."""
    from reasongenrm.config import DistillConfig
    from reasongenrm.reasons.write import distill_reasons as stage
    from reasongenrm.runs.task import Task

    with Task("distill_reasons", store_uri, reasons) as task:
        task.publish(
            stage(task.store, task.section(DistillConfig, config), task.input(prompts), teacher_uri), summary=summary
        )
