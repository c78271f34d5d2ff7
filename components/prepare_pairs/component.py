"""Adapter of reasongenrm.data.import_model.import_model and reasongenrm.data.pairs.prepare_pairs."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def prepare_pairs(
    store_uri: str,
    preferences_uri: str,
    benchmark_uri: str,
    model_uri: str,
    teacher_uri: str,
    config: dict,
    base_model: dsl.OutputPath(str),
    prompts: dsl.OutputPath(str),
) -> None:
    """Bring the base checkpoint into the store, and turn preference rows into judge prompts."""
    from reasongenrm.data.import_model import import_model
    from reasongenrm.data.pairs import prepare_pairs as stage
    from reasongenrm.runs.input_checks import check_data
    from reasongenrm.runs.task import Task

    uris = {
        "preferences_uri": preferences_uri,
        "benchmark_uri": benchmark_uri,
        "model_uri": model_uri,
        "teacher_uri": teacher_uri,
    }
    with Task("import_model", base_model) as task:
        task.begin(store_uri, config, **uris)
        check_data(preferences_uri, benchmark_uri, task.config)  # before a model of many gigabytes is fetched
        model = task.publish(import_model(task.store, task.config.model, model_uri))
    with Task("prepare_pairs", prompts, model=model) as task:
        task.publish(stage(task.store, task.config.pairs, preferences_uri, task.inputs["model"]))
