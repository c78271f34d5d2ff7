"""The checks of `doctor --cluster`: what the cluster lacks for runs and judges, or what somebody has reset.

It reads, and asks for access reviews, which leave nothing behind. Values of secrets are not shown. What the caller's
own account may not see is "not checked", which is no fault.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import yaml

from reasongenrm import __version__
from reasongenrm.cli.findings import Finding
from reasongenrm.components.images import read_table
from reasongenrm.config import DeployConfig, ResourcesConfig
from reasongenrm.deploy.transformer import JUDGE_KEY, PREDICTOR_KEY
from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes import kinds, rights
from reasongenrm.kubernetes.cluster import Cluster, ForbiddenError, UnavailableError

LAUNCHER = "kfp-launcher"  # KFP 2.17, backend/src/v2/config/env.go
KFP_NAMESPACE, KFP_SERVICE, KFP_PORT = "kubeflow", "ml-pipeline", 8888  # its own, also where runs are in profiles
KFP_VERSION = "2.17"
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_ENDPOINT_KEY, S3_ENDPOINT = "AWS_ENDPOINT_URL", "serving.kserve.io/s3-endpoint"
APPLY = (
    "kubectl apply -k manifests/overlays/OVERLAY --server-side --field-manager=reasongenrm --force-conflicts "
    "(docs/install.md, Upgrade)."
)
# Kind -> what brings it, and what does without it.
KINDS = {
    kinds.INFERENCE_SERVICE: ("KServe v0.20.0", ""),
    kinds.SERVING_RUNTIME: ("KServe v0.20.0", ""),
    kinds.WORKFLOW: ("Kubeflow Pipelines 2.17.0", ""),
    kinds.TRAIN_JOB: ("Kubeflow Trainer v2.3.0", "all but mode: trainjob"),
    kinds.LLM_INFERENCE_SERVICE: ("KServe v0.20.0 with llmisvc", "all but deploy.target: llminferenceservice"),
}
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_RESOURCES, _DEPLOY = ResourcesConfig(), DeployConfig()


def examine_cluster(cluster: Cluster, run: str, serving: str) -> list[Finding]:
    """Look at a cluster.

    Args:
        run: the run namespace, kubeflow or a profile's.
        serving: the serving namespace.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        **{f"kind {kind.resource}": partial(_kind, cluster, kind) for kind in KINDS},
        "Kubeflow Pipelines": partial(_pipelines, cluster),
        f"ConfigMap {run}/{LAUNCHER}": partial(_launcher, cluster, run),
        "default StorageClass": partial(_storage_class, cluster),
        f"accounts in {run}": partial(_accounts, cluster, run, serving),
        f"account {serving}/{_DEPLOY.service_account}": partial(_serving_account, cluster, serving),
        "your own account": partial(_caller, cluster, run, serving),
        **{
            f"Secret {namespace}/{name}": partial(_secret, cluster, namespace, name, keys, needed)
            for namespace, name, keys, needed in _secrets(run, serving)
        },
        f"ServingRuntimes in {serving}": partial(_runtimes, cluster, serving),
        "images": partial(_images, cluster, run),
    }
    return [finding for name, check in checks.items() for finding in _checked(name, check)]


def _checked(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except ForbiddenError as error:
        call = str(error).partition(": ")[0]
        advice = "Your account may not. Look with one that may (--context)."
        yield Finding(name, False, f"not checked: {call}", advice, needed=False)
    except UnavailableError:  # of the API server itself, which would end every other check too
        raise
    except ClusterError as error:  # a kind that is not installed
        yield Finding(name, False, "cannot be read", str(error))


def _kind(cluster: Cluster, kind: kinds.Kind) -> Iterator[Finding]:
    brings, without = KINDS[kind]
    found = cluster.get(kinds.CRD, None, kind.resource)
    versions = [version["name"] for version in found["spec"]["versions"] if version["served"]] if found else []
    advice = f"Install {brings}, which serves {kind.version} (docs/install.md)."
    if without:
        advice += f" Without it {without} works."
    shown = f"served as {', '.join(versions)}" if versions else "not there"
    yield Finding(f"kind {kind.resource}", kind.version in versions, shown, advice, needed=not without)


def _pipelines(cluster: Cluster) -> Iterator[Finding]:
    name, place = "Kubeflow Pipelines", f"{KFP_NAMESPACE}/{KFP_SERVICE}"
    try:
        health = cluster.within(10).ask_service(KFP_NAMESPACE, KFP_SERVICE, KFP_PORT, "apis/v2beta1/healthz")
    except ForbiddenError:
        raise
    except ClusterError as error:
        advice = f"Install it (docs/install.md), or look why: kubectl -n {KFP_NAMESPACE} get services,pods. {error}"
        yield Finding(name, False, f"{place} does not answer", advice)
    else:
        version = health.get("tag_name", "unknown")
        shown = f"{place} answers: version {version}, {'several users' if health.get('multi_user') else 'one user'}"
        advice = f"Tried with {KFP_VERSION}.0; other versions may work (docs/install.md)."
        yield Finding(name, version.startswith(f"{KFP_VERSION}."), shown, advice, needed=False)


def _launcher(cluster: Cluster, run: str) -> Iterator[Finding]:
    """Whether the ConfigMap is ours. KFP's has an empty root and no providers, and both write it."""
    found = cluster.get(kinds.CONFIG_MAP, run, LAUNCHER) or {"metadata": {}}
    data = found.get("data", {})
    wrong = []
    if not data.get("defaultPipelineRoot", "").startswith("s3://"):
        wrong.append(f"defaultPipelineRoot is {data.get('defaultPipelineRoot')!r}{_writer(found)}; expected s3://...")
    credentials = _credentials(data.get("providers", ""))
    if credentials is None:
        wrong.append("providers names no credentials for s3")
    shown = "; ".join(wrong) or f"{data['defaultPipelineRoot']} with {credentials}"
    advice = f"Not our settings: KFP was applied after them, or they never were. {APPLY}"
    yield Finding(f"ConfigMap {run}/{LAUNCHER}", not wrong, shown, advice)


def _writer(found: Mapping[str, Any]) -> str:
    """Who wrote the root last, as the API server has noted it."""
    for entry in found["metadata"].get("managedFields", []):
        if "f:defaultPipelineRoot" in entry.get("fieldsV1", {}).get("f:data", {}):
            return f", written by {entry['manager']} at {entry['time']}"
    return ""


def _credentials(providers: str) -> str | None:
    """What KFP's launcher shows an S3 server; None if it would have nothing (KFP 2.17, backend/src/v2/config/s3.go)."""
    try:
        credentials = yaml.safe_load(providers)["s3"]["default"]["credentials"]
        if credentials.get("fromEnv"):
            return "the credentials of the pods' environment"
        return f"Secret {credentials['secretRef']['secretName']}"
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None


def _storage_class(cluster: Cluster) -> Iterator[Finding]:
    found = cluster.list(kinds.STORAGE_CLASS, None)
    default = [
        item["metadata"]["name"]
        for item in found
        if item["metadata"].get("annotations", {}).get(_DEFAULT_CLASS) == "true"
    ]
    others = ", ".join(item["metadata"]["name"] for item in found) or "none at all"
    advice = f"KFP's database waits for a volume: kubectl annotate storageclass NAME {_DEFAULT_CLASS}=true."
    yield Finding("default StorageClass", bool(default), ", ".join(default) or f"none; there are {others}", advice)


def _accounts(cluster: Cluster, run: str, serving: str) -> Iterator[Finding]:
    """The accounts that runs have: they are there, and may do what the code does."""
    there = [name for name in rights.ACCOUNTS if cluster.get(kinds.SERVICE_ACCOUNT, run, name)]
    advice = "KFP brings it. Is this the run namespace? --namespace names another."
    shown = ", ".join(there) or f"neither {' nor '.join(rights.ACCOUNTS)}"
    yield Finding(f"accounts in {run}", bool(there), shown, advice)
    for name in there:
        for namespace, table in ((run, rights.RUN), (serving, rights.SERVING)):
            yield _rights(cluster, f"{run}:{name}", name, namespace, table)


def _rights(cluster: Cluster, account: str, name: str, namespace: str, table: rights.Rights) -> Finding:
    what = f"rights of {name} in {namespace}"
    try:
        missing = _missing(cluster, account, namespace, table)
    except ForbiddenError:
        found = "not checked: your account may not create localsubjectaccessreviews there"
        advice = f"kubectl auth can-i --list -n {namespace} --as system:serviceaccount:{account}, as an administrator."
        return Finding(what, False, found, advice, needed=False)
    advice = f"The Roles of manifests/base grant it. {APPLY}"
    return Finding(what, not missing, _rights_shown(missing, table), advice)


def _missing(cluster: Cluster, account: str | None, namespace: str, table: rights.Rights) -> list[str]:
    return [
        f"{verb} {resource}{f'.{group}' if group else ''}"
        for (group, resource), verbs in table.items()
        for verb in sorted(verbs)
        if not cluster.may(verb, group, resource, namespace, account)
    ]


def _rights_shown(missing: list[str], table: rights.Rights) -> str:
    return f"may not {', '.join(missing)}" if missing else f"all {sum(map(len, table.values()))} verbs"


def _serving_account(cluster: Cluster, serving: str) -> Iterator[Finding]:
    found = cluster.get(kinds.SERVICE_ACCOUNT, serving, _DEPLOY.service_account)
    secrets = [item["name"] for item in (found or {}).get("secrets", [])]
    pulls = ", ".join(item["name"] for item in (found or {}).get("imagePullSecrets", [])) or "none"
    shown = f"secrets {', '.join(secrets) or 'none'}; pull secrets {pulls}" if found else "not there"
    advice = f"KServe's storage initializer reads the secret {_RESOURCES.s3_secret} that is attached to it. {APPLY}"
    is_well = _RESOURCES.s3_secret in secrets
    yield Finding(f"account {serving}/{_DEPLOY.service_account}", is_well, shown, advice)


def _caller(cluster: Cluster, run: str, serving: str) -> Iterator[Finding]:
    following = {key: rights.RUN[key] for key in (("", "pods"), ("", "pods/log"))}
    for command, namespace, table in (("logs", run, following), ("rollback", serving, rights.SERVING)):
        missing = _missing(cluster, None, namespace, table)
        advice = f"Only if you are to use `reasongenrm {command}` yourself: bind a Role with it to your account."
        what = f"your own account: {command}, in {namespace}"
        yield Finding(what, not missing, _rights_shown(missing, table), advice, needed=False)


def _secrets(run: str, serving: str) -> Iterator[tuple[str, str, tuple[str, ...], bool]]:
    for namespace in (run, serving):
        yield namespace, _RESOURCES.s3_secret, S3_KEYS, True
        yield namespace, _RESOURCES.judge_secret, (JUDGE_KEY, PREDICTOR_KEY), False
    yield run, _RESOURCES.teacher_secret, ("OPENAI_API_KEY",), False
    yield run, _RESOURCES.hub_secret, ("HF_TOKEN",), False


def _secret(cluster: Cluster, namespace: str, name: str, keys: tuple[str, ...], needed: bool) -> Iterator[Finding]:
    found = cluster.get(kinds.SECRET, namespace, name)
    data = (found or {}).get("data") or {}
    wrong = [f"no {key}" for key in keys if not data.get(key)] if found else ["not there"]
    advice = f"docs/install.md, Secrets, has the command{'' if needed else '; it is optional'}."
    # KServe takes the server's address from the annotation alone; without it, it asks AWS.
    annotations = (found or {"metadata": {}})["metadata"].get("annotations", {})
    if data.get(S3_ENDPOINT_KEY) and name in _attached(cluster, namespace) and S3_ENDPOINT not in annotations:
        wrong.append(f"{S3_ENDPOINT_KEY}, but no annotation {S3_ENDPOINT}")
    # An optional secret that is there must be whole: pods that name it would not start.
    yield Finding(
        f"Secret {namespace}/{name}",
        not wrong,
        "; ".join(wrong) or ", ".join(sorted(data)),
        advice,
        needed or bool(found),
    )


def _attached(cluster: Cluster, namespace: str) -> list[str]:
    """Secrets that KServe's storage initializer reads."""
    account = cluster.get(kinds.SERVICE_ACCOUNT, namespace, _DEPLOY.service_account) or {}
    return [item["name"] for item in account.get("secrets", [])]


def _runtimes(cluster: Cluster, serving: str) -> Iterator[Finding]:
    ours = cluster.list(kinds.SERVING_RUNTIME, serving, labels="app.kubernetes.io/part-of=reasongenrm")
    if not ours:
        yield Finding(f"ServingRuntimes in {serving}", False, "none of ours", f"An overlay brings one. {APPLY}")
    for item in ours:
        image = item["spec"]["containers"][0]["image"]
        advice = f"A judge of this version ({__version__}) needs the runtime of this version. {APPLY}"
        is_ours = image.rpartition(":")[2] == __version__
        yield Finding(f"ServingRuntime {serving}/{item['metadata']['name']}", is_ours, image, advice, needed=False)


def _images(cluster: Cluster, run: str) -> Iterator[Finding]:
    """No registry is asked: it may be reachable from the nodes alone. A node that has an image has pulled it."""
    nodes = cluster.list(kinds.NODE, None)
    try:
        is_there = cluster.get(kinds.SECRET, run, _RESOURCES.image_pull_secret) is not None
        pull = f"pull secret {_RESOURCES.image_pull_secret} {'there' if is_there else 'not there'}"
    except ForbiddenError:
        pull = "pull secret not checked"
    for name, image in read_table().items():
        having = sum(image in _names(node) for node in nodes)
        advice = (
            "No node has it yet, and no registry is asked from here. Whether they can pull it: "
            f"kubectl -n {run} run probe --rm -it --restart=Never --image={image} -- doctor --image {name}"
        )
        shown = f"{image} on {having} of {len(nodes)} nodes; {pull}"
        yield Finding(f"image {name}", having > 0, shown, advice, needed=False)


def _names(node: Mapping[str, Any]) -> set[str]:
    return {name for image in node.get("status", {}).get("images", []) for name in image.get("names", [])}
