"""Adapter of reasongenrm.deploy.deploy.deploy_kserve."""

from kfp import dsl

from reasongenrm.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def deploy_kserve(judge_image: str, decision: str, service: dsl.OutputPath(str)) -> None:
    """Deploy the winner and prove it, or put back what was served; nothing if the gate did not pass."""
    from reasongenrm.deploy.deploy import deploy_kserve as stage
    from reasongenrm.runs.task import Task
    from reasongenrm.store.artifacts import input_of

    with Task("deploy_kserve", service, decision=decision) as task:
        decided = task.inputs["decision"]
        if decided.metrics["passed"]:
            winner = str(decided.metrics["winner"])
            model = input_of(input_of(decided, f"evaluation_{winner}"), "model")
            config = task.config.deploy.with_judge_image(judge_image)
            task.publish(stage(task.store, config, decided, {winner: model}))
        else:
            task.skip("the gate did not pass, so nothing is deployed")
