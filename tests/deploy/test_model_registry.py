"""The winner is registered with its provenance, once; a registry that fails takes nothing back."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response

from reasongenrm.config import DeployConfig, EvaluateConfig, GateConfig, ModelConfig, SFTConfig
from reasongenrm.deploy import model_registry
from reasongenrm.deploy.deploy import deploy_kserve
from reasongenrm.evaluation.evaluate import evaluation_files
from reasongenrm.evaluation.gate import read_evaluation
from reasongenrm.http_client import Retries
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact, read_file
from reasongenrm.store.stage import Stage
from tests.deploy.model_registry import FakeModelRegistry, refused
from tests.endpoints import serving
from tests.judges import benchmark_of, evaluated, judged, oracle

LOGGER = model_registry.__name__
LIST = ("GET", "registered_models")
FIND = [LIST, ("GET", "registered_model"), ("GET", "model_version"), ("GET", "model_artifact")]
CREATED = [
    LIST,
    *[("GET", "registered_model"), ("POST", "registered_models")],
    *[("GET", "model_version"), ("POST", "model_versions")],
    *[("GET", "model_artifact"), ("POST", "model_versions/2/artifacts")],
]


class Winner:
    """A store with a base model, a judge made of it, its evaluation and the decision for it; a registry."""

    def __init__(self, store: Store, folder: Any, fake: FakeModelRegistry, url: str, revision: str | None) -> None:
        self.store, self.fake, self.folder = store, fake, folder
        self.config = DeployConfig(name="judge", apply=False, model_registry=url).with_judge_image("registry/cpu:1")
        with Stage(store, "import_model", ModelConfig(), {"model": "sha256:0"}) as stage:
            stage.add_bytes("config.json", b"{}")
            self.base = stage.finish({}, {"source": "org/base", "revision": revision})
        with Stage(store, "train_sft", SFTConfig(), {"model": self.base}, {"variant": "sft"}) as stage:
            stage.add_bytes("model.safetensors", b"weights")
            self.model = stage.finish({})
        self.decision = self.decide(4)

    def decide(self, num_rows: int) -> ArtifactRef:
        """A decision for the same checkpoint, on so many rows."""
        benchmark = benchmark_of(self.folder, {"sums": num_rows})
        with Stage(self.store, "evaluate_rewardbench", EvaluateConfig(), {}, {"rows": num_rows}) as stage:
            figures = evaluated(benchmark, oracle, "sft")
            for name, data in evaluation_files(figures, judged(benchmark, oracle), benchmark).items():
                stage.add_bytes(name, data)
            evaluation = stage.finish({})
        with Stage(self.store, "select_winner", GateConfig(), {"evaluation_sft": evaluation}) as stage:
            stage.add_bytes("decision.md", b"yes")
            return stage.finish({}, {"winner": "sft", "passed": True, "summary": "It wins."})

    def deploy(self, decision: ArtifactRef | None = None) -> ArtifactRef:
        return deploy_kserve(self.store, self.config, decision or self.decision, {"sft": self.model})

    def item(self, kind: str) -> dict[str, Any]:
        """The one resource of its kind."""
        (found,) = self.fake.items[kind]
        return found


@pytest.fixture
def winner(
    store: Store, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Winner]:
    monkeypatch.setattr(model_registry, "RETRIES", Retries(2, first_wait_seconds=0.01))
    monkeypatch.delenv("MODEL_REGISTRY_TOKEN", raising=False)
    revision, version = getattr(request, "param", (None, "v1"))
    fake = FakeModelRegistry(version)
    with serving(fake.app) as url:
        yield Winner(store, tmp_path, fake, url, revision)


@pytest.mark.parametrize(
    ("winner", "revision"),
    [((None, "v1"), {}), (("abc", "v1alpha3"), {"base_model_revision": "abc"})],
    indirect=["winner"],
)
def test_winner_is_registered_with_where_it_comes_from_and_how_it_was_judged(
    winner: Winner, revision: dict[str, str]
) -> None:
    done = winner.deploy()
    assert done.metrics["registered"] is True
    assert winner.fake.requests == CREATED[-len(winner.fake.requests) :]
    digits = winner.model.digest.removeprefix("sha256:")[:12]
    judge, version, artifact = map(winner.item, winner.fake.items)
    assert (judge["name"], version["name"], artifact["name"]) == ("judge", f"sft-{digits}", "judge")
    assert (version["registeredModelId"], version["description"]) == (judge["id"], "ReasonGenRM-sft. It wins.")
    assert artifact["uri"] == f"{winner.model.uri}/"
    assert (artifact["modelFormatName"], artifact["serviceAccountName"]) == ("huggingface", "reasongenrm-serving")
    kinds = {
        "MetadataStringValue": "string_value",
        "MetadataDoubleValue": "double_value",
        "MetadataIntValue": "int_value",
    }
    said = {name: value[kinds[value["metadataType"]]] for name, value in version["customProperties"].items()}
    evaluation_uri = open_artifact(winner.decision).input_uris["evaluation_sft"]
    benchmark = read_evaluation(evaluation_uri).benchmark
    made = open_artifact(winner.model)
    assert said == {
        "variant": "sft",
        "digest": winner.model.digest,
        "base_model": "org/base",
        **revision,
        "base_model_digest": winner.base.digest,
        "decision": winner.decision.uri,
        "evaluation": evaluation_uri,
        "accuracy": 1.0,
        "accuracy_low": pytest.approx(0.510109, abs=1e-6),  # 4 rows, all right: Wilson's 4 / (4 + 1.96^2)
        "accuracy_high": 1.0,
        "accuracy_confidence": 0.95,
        "consistent_fraction": 1.0,
        "unparsed_fraction": 0.0,
        "benchmark": benchmark.uri,
        "benchmark_digest": benchmark.digest,
        "benchmark_rows_digest": benchmark.rows_digest,
        "num_benchmark_rows": "4",
        "code_version": made.code_version,
        "source_sha256": made.source_sha256,
    }
    told = json.loads(read_file(done, "registration.json"))
    assert (told["version_id"], told["artifact_id"], told["properties"]) == ("2", "1", version["customProperties"])


def test_same_winner_again_is_found_and_nothing_is_written(winner: Winner) -> None:
    first = winner.deploy()
    winner.fake.requests.clear()
    assert winner.deploy() == first
    assert winner.fake.requests == FIND


def test_new_decision_for_the_same_checkpoint_updates_its_version_and_keeps_what_others_added(winner: Winner) -> None:
    winner.deploy()
    theirs = {"metadataType": "MetadataBoolValue", "bool_value": True}
    winner.item("model_version")["customProperties"]["approved"] = theirs
    winner.fake.requests.clear()
    again = winner.decide(6)
    winner.deploy(again)
    assert winner.fake.requests == [*FIND[:3], ("PATCH", "model_versions/2"), FIND[3]]
    properties = winner.item("model_version")["customProperties"]
    assert properties["approved"] == theirs
    assert properties["decision"]["string_value"] == again.uri
    assert properties["num_benchmark_rows"]["int_value"] == "6"


def test_update_that_finds_nothing_any_more_is_no_registration(winner: Winner) -> None:
    winner.deploy()
    winner.fake.replies = [*[None] * 3, refused(404, "Not Found", "no model version found for id 2")]
    done = winner.deploy(winner.decide(6))
    assert "PATCH /api/model_registry/v1/model_versions/2: was there" in read_file(done, "registration.json").decode()


def test_checkpoint_that_lies_elsewhere_now_is_told_where(winner: Winner) -> None:
    winner.deploy()
    winner.item("model_artifact")["uri"] = "s3://old-bucket/model/"
    winner.deploy()
    assert winner.item("model_artifact")["uri"] == f"{winner.model.uri}/"
    assert winner.fake.requests[-1] == ("PATCH", "model_artifacts/1")


def test_version_that_was_left_without_an_artifact_gets_it(winner: Winner) -> None:
    winner.fake.replies = [*[None] * len(CREATED[:-1]), *[refused(503, "Service Unavailable", "no database")] * 3]
    failed = winner.deploy()
    assert (failed.metrics["registered"], winner.fake.items["model_artifact"]) == (False, [])
    done = winner.deploy()
    assert (done.metrics["registered"], winner.deploy()) == (True, done)
    assert winner.item("model_artifact")["uri"] == f"{winner.model.uri}/"


def test_creation_whose_answer_was_lost_is_found(winner: Winner) -> None:
    winner.fake.loses = True
    assert winner.deploy().metrics["registered"] is True
    assert winner.item("registered_model")["id"] == "1"


def test_two_judges_may_have_the_same_checkpoint(winner: Winner) -> None:
    winner.deploy()
    winner.config = winner.config.model_copy(update={"name": "other"})
    assert winner.deploy().metrics["registered"] is True
    assert [item["registeredModelId"] for item in winner.fake.items["model_version"]] == ["1", "3"]


def test_token_is_sent_as_a_bearer_token(winner: Winner, monkeypatch: pytest.MonkeyPatch) -> None:
    winner.deploy()
    assert not any("authorization" in headers for headers in winner.fake.headers)
    winner.fake.headers.clear()
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", "secret")
    winner.deploy()
    assert {headers["authorization"] for headers in winner.fake.headers} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (refused(401, "Unauthorized", "no token"), r"HTTP 401: no token\. Set MODEL_REGISTRY_TOKEN to a token"),
        (refused(400, "Bad Request", "bad page."), r"GET /api/\S+/v1/registered_models: HTTP 400: bad page\."),
        (Response("stream timeout", 504), r"HTTP 504: 'stream timeout', also when retried"),
        (HTMLResponse("<html>Sign in</html>"), "no JSON object: '<html>Sign in</html>'. Expected the REST API of Kube"),
        (
            JSONResponse({"version": 1}),
            r"v1/registered_models: registered_model 'judge': no id\. Expected the REST API",
        ),
        (
            HTMLResponse("Not here", 404),
            r"v1alpha3/registered_models: registered_model 'judge': neither made nor found",
        ),
    ],
)
def test_registry_that_refuses_is_told_with_what_to_do_and_the_manifest_is_there_all_the_same(
    winner: Winner, caplog: pytest.LogCaptureFixture, reply: Response, said: str
) -> None:
    winner.fake.replies = [reply] * 4
    done = winner.deploy()
    assert done.metrics["registered"] is False
    assert "inferenceservice.yaml" in [entry.path for entry in open_artifact(done).files]
    (line,) = [
        record.getMessage() for record in caplog.records if (record.name, record.levelname) == (LOGGER, "WARNING")
    ]
    assert re.search(said, line)
    assert "run the same command again" in line
    assert json.loads(read_file(done, "registration.json"))["error"] in line


def test_registry_that_is_away_is_tried_again_before_it_is_given_up(
    winner: Winner, caplog: pytest.LogCaptureFixture
) -> None:
    winner.config = winner.config.model_copy(update={"model_registry": "http://127.0.0.1:9"})
    with caplog.at_level("INFO", logger=LOGGER):
        done = winner.deploy()
    where = "http://127.0.0.1:9: GET /api/model_registry/v1/registered_models: no answer (ConnectError"
    assert where in json.loads(read_file(done, "registration.json"))["error"]
    assert sum("; attempt " in record.getMessage() for record in caplog.records) == 2
