"""Adapter of reasongenrm.training.sft.train_sft, which reasongenrm.trainjob.launch runs here or in a TrainJob."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train_sft(
    variant: str, model: str, examples: str, trained_model: dsl.OutputPath(str), metrics: dsl.Output[dsl.Metrics]
) -> None:
    """Fine-tune the base model: variant "genrm" on verdicts alone, variant "sft" on reasons and verdicts."""
    from reasongenrm.runs.task import Task
    from reasongenrm.trainjob.launch import train_where_configured

    with Task(f"train_sft ({variant})", trained_model, model=model, examples=examples) as task:
        section = getattr(task.config, variant)
        task.publish(train_where_configured(task.store, section, variant, **task.inputs), metrics)
