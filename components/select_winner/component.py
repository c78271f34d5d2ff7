"""Adapter of reasongenrm.evaluation.gate.select_winner."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def select_winner(
    store_uri: str,
    config: dict,
    deploy: dict,
    base_evaluation: dsl.Input[dsl.Dataset],
    genrm_evaluation: dsl.Input[dsl.Dataset],
    sft_evaluation: dsl.Input[dsl.Dataset],
    dpo_evaluation: dsl.Input[dsl.Dataset],
    genrm_model: dsl.Input[dsl.Model],
    sft_model: dsl.Input[dsl.Model],
    dpo_model: dsl.Input[dsl.Model],
    decision: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
) -> bool:
    """Lay the four variants side by side, name the best candidate, and say whether it is good enough to serve."""
    from reasongenrm.config import DeployConfig, GateConfig
    from reasongenrm.evaluation.gate import select_winner as stage
    from reasongenrm.runs.task import Task

    with Task("select_winner", store_uri, decision) as task:
        evaluations = {"base": base_evaluation, "genrm": genrm_evaluation, "sft": sft_evaluation, "dpo": dpo_evaluation}
        models = {"genrm": genrm_model, "sft": sft_model, "dpo": dpo_model}
        sections = task.section(GateConfig, config), task.section(DeployConfig, deploy)
        ref = task.publish(stage(task.store, sections[0], task.inputs(evaluations), task.inputs(models), sections[1]))
        task.copy(ref, {"decision.md": summary, "report.html": report})
    return bool(ref.metrics["passed"])
