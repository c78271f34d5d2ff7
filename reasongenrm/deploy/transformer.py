"""The judge's server in an InferenceService: KServe's transformer, in front of the predictor.

In go the deploy settings and the gate's decision, out comes `spec.transformer`. Clients talk to it alone; it holds the
predictor's key and none of the object store's. Pure, as `serving`.
"""

from typing import Any

from reasongenrm import __version__
from reasongenrm.config import DeployConfig
from reasongenrm.kubernetes.pod_parts import CONTAINER_SECURITY, POD_SECURITY, secret_variable
from reasongenrm.store.artifacts import ArtifactRef
from reasongenrm.variants import VARIANTS

SECRET = "reasongenrm-judge"  # where no other is named; its keys may then be missing
PREDICTOR_KEY, JUDGE_KEY = "VLLM_API_KEY", "JUDGE_API_KEY"
CALIBRATION = ("calibration_temperature", "calibration_bias")  # of a decision's metrics

_PORT = 8080  # KServe's own: it appends `--http_port 8080`
_DRAIN_SECONDS = 15  # a Service's nodes and clients learn within it that a pod ends
STOP_SECONDS = _DRAIN_SECONDS + 35  # requests under way then get 30 (judge.judge_app.GRACE_SECONDS)
_START_SECONDS = 120  # importing takes some seconds; a busy node more


def render_transformer(config: DeployConfig, decision: ArtifactRef) -> dict[str, Any]:
    """`spec.transformer` of an InferenceService: how many judges, and how they ask the winner.

    KServe appends `--predictor_host NAME-predictor.NAMESPACE --http_port 8080` to the arguments, and its own name if
    there is no `--model_name`; the predictor's Service has port 80 there.

    Args:
        config: `judge` is enabled and has an image.
        decision: of the gate; its winner says the style, its metrics the calibration, if there is one.

    Source: KServe aaac4e294, pkg/apis/serving/v1beta1/transformer_custom.go.
    """
    judge, winner = config.judge, VARIANTS[str(decision.metrics["winner"])]
    arguments: dict[str, Any] = {
        "host": "0.0.0.0",
        "model_name": config.name,  # in KServe's protocols; that of the InferenceService changes
        "drain-seconds": _DRAIN_SECONDS,
        "style": winner.style,
        "about": f"{winner.label}: {winner.meaning}",
        "max-tokens": judge.max_tokens,
        "max-concurrency": judge.max_concurrency,
        "generation-seconds": judge.generation_seconds,
        "request-seconds": judge.request_seconds,
    }
    for key in CALIBRATION:
        if key in decision.metrics:
            arguments[key.replace("_", "-")] = decision.metrics[key]
    resources, secret = {"cpu": judge.cpu, "memory": judge.memory}, config.judge_secret or SECRET
    container = {
        "name": "kserve-container",
        "image": judge.image,
        "command": ["reasongenrm", "judge-server"],
        "args": [f"--{name}={value}" for name, value in arguments.items()],
        # A secret that the settings name must have the keys.
        "env": [secret_variable(secret, key, config.judge_secret is None) for key in (JUDGE_KEY, PREDICTOR_KEY)],
        "ports": [{"name": "http1", "containerPort": _PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/healthz", 2, _START_SECONDS // 2),
        # Not ready while no predictor answers: a rollout ends with the first judge that can judge.
        "readinessProbe": _probe("/readyz", 5, 3),
        "livenessProbe": _probe("/healthz", 20, 4),
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "serviceAccountName": config.service_account,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "minReplicas": judge.replicas,
        "maxReplicas": judge.replicas,
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}],
        "labels": {"app.kubernetes.io/version": __version__},
    }


def _probe(path: str, period_seconds: int, num_failures: int) -> dict[str, Any]:
    asked = {"path": path, "port": _PORT}
    return {"httpGet": asked, "periodSeconds": period_seconds, "timeoutSeconds": 5, "failureThreshold": num_failures}
