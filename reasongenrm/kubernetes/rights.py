"""What the pipeline's account may do in the cluster: all that the code does, and nothing besides.

The Roles of manifests/base grant it, and tests/manifests/test_rights.py compares the two. `reasongenrm doctor
--cluster` asks a cluster whether it does so too.
"""

from collections.abc import Mapping

# The pipeline's pods run as the first in single-user KFP, as the second in a user's profile.
ACCOUNTS = ("pipeline-runner", "default-editor")

Rights = Mapping[tuple[str, str], frozenset[str]]  # (API group, resource) -> verbs

# In the serving namespace. deploy and rollback, one at a time (the lease), bring an InferenceService and switch a
# Service to its pods; the rest says whether the runtime is there, how the rollout goes, and why a judge does not start.
SERVING: Rights = {
    ("serving.kserve.io", "inferenceservices"): frozenset({"get", "list", "create", "delete"}),
    ("serving.kserve.io", "llminferenceservices"): frozenset({"get", "list", "create", "delete"}),
    ("serving.kserve.io", "servingruntimes"): frozenset({"get", "list"}),
    ("serving.kserve.io", "llminferenceserviceconfigs"): frozenset({"get", "list"}),
    ("", "services"): frozenset({"get", "create", "update", "delete"}),
    ("discovery.k8s.io", "endpointslices"): frozenset({"list"}),
    ("coordination.k8s.io", "leases"): frozenset({"get", "create", "update"}),
    ("apps", "deployments"): frozenset({"get", "list", "create"}),
    ("", "pods"): frozenset({"get", "list"}),
    ("", "events"): frozenset({"get", "list"}),
    ("", "pods/log"): frozenset({"get"}),
}
# In the run namespace, besides what KFP gives its pods: a training stage with `mode: trainjob` manages a TrainJob and
# follows its pods.
RUN: Rights = {
    ("trainer.kubeflow.org", "trainjobs"): frozenset({"get", "list", "create", "patch", "delete"}),
    ("", "pods"): frozenset({"get", "list"}),
    ("", "events"): frozenset({"get", "list"}),
    ("", "pods/log"): frozenset({"get"}),
}
