"""How an API server answers access reviews: by the Roles and RoleBindings that it holds.

Source: Kubernetes 1.36, pkg/registry/authorization/*accessreview/rest.go (a review is not stored, and its metadata must
be empty but for the namespace), plugin/pkg/auth/authorizer/rbac/rbac.go (what a rule matches, the words of the reason).
"""

from collections.abc import Collection

from tests.kube.objects import Object, Objects, Refusal


def answer_review(objects: Objects, denied: Collection[tuple[str, str]], namespace: str, body: Object) -> Object:
    """The review with its status.

    Args:
        denied: (verb, resource) that whoever asks may not do; everything else is allowed to them.
        namespace: of the request.
    """
    asked, metadata = body["spec"]["resourceAttributes"], body["metadata"]
    resource = "/".join(part for part in (asked["resource"], asked.get("subresource")) if part)
    if body["kind"] == "SelfSubjectAccessReview":
        if metadata:
            raise _invalid(body, "metadata: Invalid value: must be empty")
        return {**body, "status": {"allowed": (asked["verb"], resource) not in denied}}
    if metadata.keys() - {"namespace"}:
        raise _invalid(body, "metadata: Invalid value: must be empty except for namespace")
    if asked["namespace"] != metadata.get("namespace"):
        raise _invalid(body, "spec.resourceAttributes.namespace: Invalid value: must match metadata.namespace")
    if namespace != metadata["namespace"]:
        raise Refusal(400, "BadRequest", f"spec.resourceAttributes.namespace must match namespace: {namespace}")
    reason = _allowed_by(objects, namespace, body["spec"]["user"], asked["verb"], asked["group"], resource)
    return {**body, "status": {"allowed": bool(reason), **({"reason": reason} if reason else {})}}


def _allowed_by(objects: Objects, namespace: str, user: str, verb: str, group: str, resource: str) -> str:
    for binding in objects.all("rolebindings", namespace):
        for subject in binding["subjects"]:
            if user != f"system:serviceaccount:{subject['namespace']}:{subject['name']}":
                continue
            name = binding["roleRef"]["name"]
            for role in objects.all("roles", namespace):
                if role["metadata"]["name"] == name and any(
                    _fits(rule, verb, group, resource) for rule in role["rules"]
                ):
                    by = f'RoleBinding "{binding["metadata"]["name"]}/{namespace}" of Role "{name}"'
                    return f'RBAC: allowed by {by} to ServiceAccount "{subject["name"]}/{subject["namespace"]}"'
    return ""


def _fits(rule: Object, verb: str, group: str, resource: str) -> bool:
    pairs = ((verb, rule["verbs"]), (group, rule["apiGroups"]), (resource, rule["resources"]))
    return all("*" in allowed or asked in allowed for asked, allowed in pairs)


def _invalid(body: Object, what: str) -> Refusal:
    return Refusal(422, "Invalid", f'{body["kind"]}.authorization.k8s.io "" is invalid: {what}')
