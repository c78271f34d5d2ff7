"""Adapter of reasongenrm.deploy.deploy.deploy_kserve."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def deploy_kserve(
    store_uri: str,
    config: dict,
    judge_image: str,
    decision: dsl.Input[dsl.Dataset],
    base_model: dsl.Input[dsl.Model],
    genrm_model: dsl.Input[dsl.Model],
    sft_model: dsl.Input[dsl.Model],
    dpo_model: dsl.Input[dsl.Model],
    service: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Deploy the winner and prove it, or put back what was served."""
    from reasongenrm.config import DeployConfig
    from reasongenrm.deploy.deploy import deploy_kserve as stage
    from reasongenrm.runs.task import Task

    with Task("deploy_kserve", store_uri, service) as task:
        models = {"base": base_model, "genrm": genrm_model, "sft": sft_model, "dpo": dpo_model}
        section = task.section(DeployConfig, config).with_judge_image(judge_image)
        task.publish(stage(task.store, section, task.input(decision), task.inputs(models)), summary=summary)
