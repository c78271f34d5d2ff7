"""Adapter of reasongenrm.evaluation.gate.select_winner."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def select_winner(
    base: str,
    genrm: str,
    sft: str,
    dpo: str,
    decision: dsl.OutputPath(str),
    summary: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Lay the four variants side by side, name the best candidate, and say whether it is good enough to serve."""
    from reasongenrm.evaluation.gate import select_winner as stage
    from reasongenrm.runs.task import Task
    from reasongenrm.store.artifacts import input_of

    with Task("select_winner", decision, base=base, genrm=genrm, sft=sft, dpo=dpo) as task:
        trainings = {name: input_of(ref, "model") for name, ref in task.inputs.items() if name != "base"}
        ref = stage(task.store, task.config.gate, task.inputs, trainings, task.config.deploy)
        task.copy(ref, {"decision.md": summary, "report.html": report})
        task.publish(ref)
