"""Adapter of reasongenrm.training.sft.train_sft, which reasongenrm.trainjob.launch runs here or in a TrainJob."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train_sft(
    store_uri: str,
    variant: str,
    config: dict,
    model: dsl.Input[dsl.Model],
    examples: dsl.Input[dsl.Dataset],
    trained_model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Fine-tune the base model: variant "genrm" on verdicts alone, variant "sft" on reasons and verdicts."""
    from reasongenrm.config import SFTConfig
    from reasongenrm.runs.task import Task
    from reasongenrm.trainjob.launch import train_where_configured

    with Task("train_sft", store_uri, trained_model) as task:
        inputs = task.inputs({"model": model, "examples": examples})
        section = task.section(SFTConfig, config)
        task.publish(train_where_configured(task.store, section, variant, **inputs), metrics)
