"""Adapter of reasongenrm.data.import_model.import_model."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def import_model(store_uri: str, model_uri: str, config: dict, base_model: dsl.Output[dsl.Model]) -> None:
    """Bring the base checkpoint (hub name, folder, GGUF file or s3:// URI) into the store."""
    from reasongenrm.config import ModelConfig
    from reasongenrm.data.import_model import import_model as stage
    from reasongenrm.runs.task import Task

    with Task("import_model", store_uri, base_model) as task:
        task.publish(stage(task.store, task.section(ModelConfig, config), model_uri))
