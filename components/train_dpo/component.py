"""Adapter of reasongenrm.training.dpo.train_dpo, which reasongenrm.trainjob.launch runs here or in a TrainJob."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train_dpo(
    store_uri: str,
    config: dict,
    model: dsl.Input[dsl.Model],
    preferences: dsl.Input[dsl.Dataset],
    trained_model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Move the SFT model's reasoning towards the chosen reasons; the reference model is the SFT model."""
    from reasongenrm.config import DPOConfig
    from reasongenrm.runs.task import Task
    from reasongenrm.trainjob.launch import train_where_configured

    with Task("train_dpo", store_uri, trained_model) as task:
        inputs = task.inputs({"model": model, "preferences": preferences})
        task.publish(train_where_configured(task.store, task.section(DPOConfig, config), **inputs), metrics)
