"""The kinds of objects that we read or write, and where the Kubernetes API has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of object and where the API has it; the core group is ""."""

    group: str
    version: str
    plural: str
    kind: str

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> "Kind":
        """The kind of an object; one of those below."""
        return next(kind for kind in KINDS if (kind.api_version, kind.kind) == (item["apiVersion"], item["kind"]))

    @property
    def api_version(self) -> str:
        """As an object's `apiVersion` says it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As RBAC and kubectl say it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of one object or of all of them; namespace None: of all namespaces."""
        parts = ["/apis", self.group] if self.group else ["/api"]
        parts.append(self.version)
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        return "/".join([*parts, name] if name is not None else parts)


INFERENCE_SERVICE = Kind("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService")
LLM_INFERENCE_SERVICE = Kind("serving.kserve.io", "v1alpha2", "llminferenceservices", "LLMInferenceService")
LLM_CONFIG = Kind("serving.kserve.io", "v1alpha2", "llminferenceserviceconfigs", "LLMInferenceServiceConfig")
SERVING_RUNTIME = Kind("serving.kserve.io", "v1alpha1", "servingruntimes", "ServingRuntime")
TRAIN_JOB = Kind("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob")
WORKFLOW = Kind("argoproj.io", "v1alpha1", "workflows", "Workflow")
POD = Kind("", "v1", "pods", "Pod")
SECRET = Kind("", "v1", "secrets", "Secret")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
EVENT = Kind("", "v1", "events", "Event")
SERVICE = Kind("", "v1", "services", "Service")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
NODE = Kind("", "v1", "nodes", "Node")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
ENDPOINT_SLICE = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")
STORAGE_CLASS = Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass")
CRD = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
# Questions: they are created and answered, and nothing of them stays.
ACCESS_REVIEW = Kind("authorization.k8s.io", "v1", "localsubjectaccessreviews", "LocalSubjectAccessReview")
OWN_ACCESS_REVIEW = Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")

JUDGES = (INFERENCE_SERVICE, LLM_INFERENCE_SERVICE)  # that own what else belongs to a judge
KINDS = (*JUDGES, DEPLOYMENT, SERVICE)  # that a judge's manifests have
