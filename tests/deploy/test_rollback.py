"""rollback: what there is to go back to, and that the old judge is served, asked and recorded again."""

import json

import pytest
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.deploy.rollback import choices, choose, roll_back
from reasongenrm.errors import InputError
from reasongenrm.store.served import served_history, served_judge
from tests.deploy.kserve import NAMESPACE
from tests.deploy.test_deploy import CONFIG, World, world

__all__ = ["world"]


def test_rollback_serves_the_judge_before_and_a_second_one_goes_forth_again(world: World) -> None:
    world.deploy("good")
    world.deploy("other")
    chosen = choose(world.cluster, world.store, NAMESPACE, "judge", None)
    asked = len(world.endpoint.bodies)
    deployed = roll_back(world.cluster, world.store, CONFIG, chosen)
    assert deployed.changed
    assert len(world.endpoint.bodies) == asked + 6
    served = served_judge(world.store, NAMESPACE, "judge")
    assert served is not None
    assert (served.cause, served.model.uri) == ("rollback", world.uri("good"))
    assert [judge.cause for judge in served_history(world.store, NAMESPACE, "judge")] == [
        "deploy",
        "deploy",
        "rollback",
    ]
    again = choose(world.cluster, world.store, NAMESPACE, "judge", None)
    assert (world.services(), world.served()) == (["good"], "good")
    assert again.judge.model.uri == world.uri("other")


def test_judge_is_named_by_number_or_digest_and_nothing_else(world: World) -> None:
    world.deploy("good")
    world.deploy("other")
    listed = choices(world.cluster, world.store, NAMESPACE, "judge")
    assert [(choice.number, choice.is_served) for choice in listed] == [(1, True), (2, False)]
    assert choose(world.cluster, world.store, NAMESPACE, "judge", "2").judge.model.digest == world.model("good").digest
    digits = world.model("other").digest[7:19]
    assert choose(world.cluster, world.store, NAMESPACE, "judge", digits).number == 1
    with pytest.raises(InputError, match="0 judges fit --to 7; expected one"):
        choose(world.cluster, world.store, NAMESPACE, "judge", "7")


def test_first_judge_has_nothing_before_it(world: World) -> None:
    world.deploy("good")
    with pytest.raises(
        InputError, match=r"no judge was served before this one.*kubectl delete service,inferenceservice"
    ):
        choose(world.cluster, world.store, NAMESPACE, "judge", None)


def test_command_lists_says_and_goes_back(world: World) -> None:
    world.deploy("good")
    world.deploy("other")
    base = ["rollback", "judge", "--store", world.store.uri]
    listed = CliRunner().invoke(app, [*base, "--list", "--json"])
    assert [entry["model_uri"] for entry in json.loads(listed.stdout)] == [world.uri(how) for how in ("other", "good")]
    table = CliRunner().invoke(app, [*base, "--list"])
    assert "served" in table.stdout
    writes = len(world.writes())
    dry = CliRunner().invoke(app, [*base, "--dry-run"])
    assert dry.stdout.replace("\n", "").startswith(
        f"reasongenrm/judge would serve: {world.uri('good')} (dpo, served since "
    )
    assert len(world.writes()) == writes
    done = CliRunner().invoke(app, [*base, "--json", "--set", "deploy.num_golden=2", "--set", "deploy.drain_seconds=0"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout[done.stdout.index("{") :])["golden_agreement"] == 1.0
    assert world.served() == "good"
