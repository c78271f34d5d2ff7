"""Adapter of reasongenrm.reasons.write.distill_reasons."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.VLLM, install_kfp_package=False)
def distill_reasons(prompts: str, reasons: dsl.OutputPath(str)) -> None:
    """Let the teacher, who is told the right verdict, write reasons for each judge prompt."""
    from reasongenrm.reasons.write import distill_reasons as stage
    from reasongenrm.runs.task import Task

    with Task("distill_reasons", reasons, prompts=prompts) as task:
        task.publish(stage(task.store, task.config.distill, task.inputs["prompts"], task.uris.teacher_uri))
