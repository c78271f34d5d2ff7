"""Adapter of reasongenrm.training.sft.train_sft."""

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
    from reasongenrm.training.sft import train_sft as stage

    with Task("train_sft", store_uri, trained_model) as task:
        inputs = (task.input(model), task.input(examples))
        task.publish(stage(task.store, task.section(SFTConfig, config), variant, *inputs), metrics)  # type: ignore[arg-type]  # KFP knows no Literal
