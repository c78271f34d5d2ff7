"""rollback: what there is to go back to, and that the old judge is served, asked and recorded again."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.deploy.rollback import choices, choose, roll_back
from reasongenrm.errors import InputError
from reasongenrm.store.served import served_history, served_judge
from tests.deploy.kserve import NAMESPACE
from tests.deploy.test_deploy import CONFIG, World, world

__all__ = ["world"]


def by_hand() -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "judge", "namespace": NAMESPACE},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "s3://b/hand/"}}},
    }


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
    assert again.judge is not None
    assert again.judge.model.uri == world.uri("other")


def test_judge_by_hand_can_be_gone_back_to_and_is_then_no_champion(world: World) -> None:
    world.fake.put(by_hand())
    world.deploy("good")
    chosen = choose(world.cluster, world.store, NAMESPACE, "judge", None)
    assert chosen.judge is None
    roll_back(world.cluster, world.store, CONFIG, chosen)
    service = world.service()
    assert service is not None
    assert service["spec"] == by_hand()["spec"]
    assert served_judge(world.store, NAMESPACE, "judge") is None
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1


def test_judge_is_named_by_number_or_digest_and_nothing_else(world: World) -> None:
    world.deploy("good")
    world.deploy("other")
    listed = choices(world.cluster, world.store, NAMESPACE, "judge")
    assert [(choice.number, choice.is_served) for choice in listed] == [(1, True), (2, False)]
    assert choose(world.cluster, world.store, NAMESPACE, "judge", "2").digest == world.model("good").digest
    digits = world.model("other").digest[7:19]
    assert choose(world.cluster, world.store, NAMESPACE, "judge", digits).number == 1
    with pytest.raises(InputError, match="0 judges fit --to 7; expected one"):
        choose(world.cluster, world.store, NAMESPACE, "judge", "7")


def test_first_judge_has_nothing_before_it(world: World) -> None:
    world.deploy("good")
    with pytest.raises(InputError, match=r"no judge was served before this one.*kubectl delete inferenceservice judge"):
        choose(world.cluster, world.store, NAMESPACE, "judge", None)


def test_command_lists_says_and_goes_back(world: World) -> None:
    world.deploy("good")
    world.deploy("other")
    base = ["rollback", "judge", "--store", world.store.uri]
    listed = CliRunner().invoke(app, [*base, "--list", "--json"])
    assert [entry["model_uri"] for entry in json.loads(listed.stdout)] == [
        world.uri(how) + "/" for how in ("other", "good")
    ]
    table = CliRunner().invoke(app, [*base, "--list"])
    assert "served" in table.stdout
    writes = len(world.writes())
    dry = CliRunner().invoke(app, [*base, "--dry-run"])
    assert dry.stdout.replace("\n", "").startswith(
        f"reasongenrm/judge would serve: {world.uri('good')}/ (dpo, served since "
    )
    assert len(world.writes()) == writes
    done = CliRunner().invoke(app, [*base, "--json", "--set", "deploy.num_golden=2"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout[done.stdout.index("{") :])["golden_agreement"] == 1.0
    service = world.service()
    assert service is not None
    assert service["spec"]["predictor"]["model"]["storageUri"] == world.uri("good") + "/"
