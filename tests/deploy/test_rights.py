"""The manifests give nobody a right that isn't needed."""

from typing import Any

from tests.deploy.manifests import Rendered


def check_rights(rendered: Rendered) -> None:
    pod, container = rendered.pod, rendered.container
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert rendered.one("ServiceAccount", pod["serviceAccountName"])["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert rendered.one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert rendered.all("Secret") == [], "secrets are the user's"
    assert rendered.all("Role") + rendered.all("ClusterRole") == []


def test_rights(rendered: Rendered) -> None:
    check_rights(rendered)


def test_rights_with_a_component(with_component: Rendered) -> None:
    check_rights(with_component)


def test_who_reaches_what(rendered: Rendered) -> None:
    rules = rendered.one("NetworkPolicy")["spec"]
    assert rules["egress"] == []
    reached = {rule["ports"][0]["port"]: namespaces(rule) for rule in rules["ingress"]}
    assert reached == {"grpc": ["clients"], "metrics": ["monitoring"]}
    for policy in rendered.all("NetworkPolicy"):
        assert all(rule["from"] for rule in policy["spec"]["ingress"]), "an empty list lets everybody in"


def namespaces(rule: dict[str, Any]) -> list[str]:
    return [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in rule["from"]]
