"""A canary beside the judge that is served: asked alone, promoted without new pods, or taken away again."""

from typing import Any

import pytest
import yaml

from reasongenrm.deploy.manifest import mark_of
from reasongenrm.errors import ClusterError
from reasongenrm.store.served import served_history, served_judge
from tests.deploy.kserve import NAMESPACE
from tests.deploy.test_deploy import CONFIG, NO_JUDGE, World, world
from tests.endpoints import completion
from tests.kube.schemas import CRDS

__all__ = ["world"]

STABLE = CONFIG.model_copy(update={"judge": NO_JUDGE})
CANARY = STABLE.model_copy(update={"canary_percent": 10})
ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "judge-predictor", "namespace": NAMESPACE},
    "spec": {"rules": [{"backendRefs": [{"name": "judge-predictor", "port": 80}]}]},
}


def crd(*fields: str) -> dict[str, Any]:
    """A CRD of InferenceService whose spec has these fields beside its predictor."""
    spec = {"type": "object", "properties": {field: {"type": "object"} for field in ("predictor", *fields)}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "inferenceservices.serving.kserve.io"},
        "spec": {
            "group": "serving.kserve.io",
            "scope": "Namespaced",
            "names": {"kind": "InferenceService", "plural": "inferenceservices"},
            "versions": [{"name": "v1beta1", "served": True, "storage": True, "schema": schema}],
        },
    }


def know_canaries(world: World) -> None:
    """Make the cluster one whose KServe has canaries and uses the Gateway API."""
    world.fake.put(crd("canary"))
    world.fake.put(ROUTE)


def pods(world: World) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in world.fake.objects("pods", NAMESPACE))


def test_canary_is_asked_and_takes_over_with_its_own_pods(world: World) -> None:
    world.deploy("good", STABLE)
    know_canaries(world)
    num_pods = world.kserve.num_pods
    deployed = world.deploy("other", CANARY)
    predictor = deployed.manifest["spec"]["predictor"]
    assert predictor["name"] == f"c{mark_of(deployed.manifest)}"[:9]
    assert "canary" not in deployed.manifest["spec"]
    assert world.kserve.num_pods == num_pods + 1  # the canary's pod and no other
    assert pods(world) == [f"judge-{predictor['name']}-predictor-{num_pods + 1}"]
    served = served_judge(world.store, NAMESPACE, "judge")
    assert served is not None
    assert served.model.uri == world.uri("other")
    assert not world.deploy("other", CANARY).changed


def test_canary_that_judges_wrongly_is_taken_away_and_the_old_pods_never_stopped(world: World) -> None:
    world.deploy("good", STABLE)
    know_canaries(world)
    before, old = pods(world), world.service()
    assert old is not None
    world.endpoint.reply = lambda *_: completion("[[A]]", reasoning="Always the first.")
    with pytest.raises(ClusterError, match=r"judged 0 of 3 rows[\s\S]*is back. It is ready again"):
        world.deploy("other", CANARY)
    now = world.service()
    assert now is not None
    assert now["spec"] == old["spec"]
    assert pods(world) == before


def test_canary_that_is_not_promoted_stays_beside_and_is_no_champion(world: World) -> None:
    world.deploy("good", STABLE)
    know_canaries(world)
    stay = CANARY.model_copy(update={"canary_promote": False})
    deployed = world.deploy("other", stay)
    assert deployed.is_canary
    assert deployed.manifest["spec"]["canary"][0]["trafficPercent"] == 10
    assert len(pods(world)) == 2
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1
    beside, num_writes = pods(world), len(world.writes())
    world.deploy("other", stay)
    assert len(world.writes()) == num_writes
    world.deploy("other", CANARY)  # now promoted: its pods go on, the old ones end
    assert pods(world) == [name for name in beside if not name.startswith("judge-predictor")]


def test_kserve_that_knows_no_canaries_is_told_from_its_crd_before_anything_is_written(world: World) -> None:
    world.deploy("good", STABLE)
    world.fake.put(crd())
    world.fake.put(ROUTE)
    num_writes = len(world.writes())
    with pytest.raises(
        ClusterError, match=r"has no spec\.canary, which came with KServe 0\.21[\s\S]*Nothing was changed"
    ):
        world.deploy("other", CANARY)
    assert len(world.writes()) == num_writes


@pytest.mark.skipif(not CRDS.is_dir(), reason="the CRDs of ../shared/crds are not here")
def test_published_crd_of_kserve_is_one_that_knows_canaries() -> None:
    published = yaml.load((CRDS / "serving.kserve.io_inferenceservices.yaml").read_text(), Loader=yaml.CSafeLoader)
    (version,) = [item for item in published["spec"]["versions"] if item["name"] == "v1beta1"]
    assert "canary" in version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


def test_cluster_without_httproutes_has_no_canary(world: World) -> None:
    world.fake.put(crd("canary"))
    world.deploy("good", STABLE)
    with pytest.raises(
        ClusterError, match=r"there is no HTTPRoute reasongenrm/judge-predictor[\s\S]*Nothing was changed"
    ):
        world.deploy("other", CANARY)
    world.fake.uninstall("httproutes")
    with pytest.raises(
        ClusterError, match=r"HTTPRoutes cannot be read[\s\S]*Install the Gateway API[\s\S]*Nothing was"
    ):
        world.deploy("other", CANARY)
    assert world.writes() == ["create"]


def test_first_judge_needs_no_canary(world: World) -> None:
    deployed = world.deploy("good", CANARY)
    assert not deployed.is_canary
    assert "nothing is served yet" in deployed.timeline.entries[0]["what"]
