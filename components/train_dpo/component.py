"""Adapter of reasongenrm.training.dpo.train_dpo, which reasongenrm.trainjob.launch runs here or in a TrainJob."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train_dpo(
    model: str, preferences: str, trained_model: dsl.OutputPath(str), metrics: dsl.Output[dsl.Metrics]
) -> None:
    """Move the SFT model's reasoning towards the chosen reasons; the reference model is the SFT model."""
    from reasongenrm.runs.task import Task
    from reasongenrm.trainjob.launch import train_where_configured

    with Task("train_dpo", trained_model, model=model, preferences=preferences) as task:
        task.publish(train_where_configured(task.store, task.config.dpo, **task.inputs), metrics)
