"""Adapter of reasongenrm.reasons.write.sample_reasons."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.VLLM, install_kfp_package=False)
def sample_reasons(model: str, prompts: str, reasons: dsl.OutputPath(str)) -> None:
    """Let the SFT model write reasons without seeing the verdict (on-policy)."""
    from reasongenrm.reasons.write import sample_reasons as stage
    from reasongenrm.runs.task import Task

    with Task("sample_reasons", reasons, model=model, prompts=prompts) as task:
        task.publish(stage(task.store, task.config.sample, *task.inputs.values()))
