"""What Envoy Gateway, KEDA and the Prometheus operator are told: valid, and about things that are really there."""

import re
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import jsonschema
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from reformer.v1 import admin_pb2
from reformer_client.calls import Call
from reformer_client.retry import Attempts, RetryPolicy
from reformer_core.tokenizers import ByteTokenizer
from reformer_server.health import READINESS
from reformer_server.server import SERVICES
from reformer_server.units import parse_duration
from reformer_server.validation import DOCUMENT_ID_METADATA
from tests.deploy.manifests import KUBERNETES, ROOT, Manifest, Rendered, overlay
from tests.server.conftest import running_server, tiny_served_model
from tests.server.fake_engine import FakeEngine

GROUPS = ("gateway.networking.k8s.io/", "gateway.envoyproxy.io/", "keda.sh/", "monitoring.coreos.com/")


@cache
def schemas() -> dict[str, Any]:
    """By API version and kind; what a `spec` may be."""
    text = (ROOT / "tests" / "deploy" / "crd_schemas.yaml").read_text(encoding="utf-8")
    all_schemas: dict[str, Any] = yaml.safe_load(text)
    return all_schemas


def check(manifest: Manifest) -> None:
    schema = schemas()[f"{manifest['apiVersion']} {manifest['kind']}"]
    jsonschema.validate(manifest["spec"], {**schema, "$defs": schemas()["$defs"]})


@pytest.fixture(scope="module")
def gateway() -> Rendered:
    return overlay("gateway")


def test_all_are_valid(gateway: Rendered) -> None:
    """All others are Kubernetes' own, and validated by its own schemas."""
    custom = [manifest for manifest in gateway.manifests if manifest["apiVersion"].startswith(GROUPS)]
    for manifest in custom:
        check(manifest)
    expected = {"Gateway", "GRPCRoute", "BackendTrafficPolicy", "ClientTrafficPolicy", "ScaledObject", "ServiceMonitor"}
    assert {manifest["kind"] for manifest in custom} >= expected


def test_a_mistake_is_not_valid(gateway: Rendered) -> None:
    policy = gateway.one("BackendTrafficPolicy")
    with pytest.raises(jsonschema.ValidationError, match="healthChecks"):
        check({**policy, "spec": {**policy["spec"], "healthChecks": {}}})
    with pytest.raises(jsonschema.ValidationError, match="0 seconds"):
        check({**policy, "spec": {**policy["spec"], "timeout": {"http": {"requestTimeout": "0 seconds"}}}})


def test_calls_go_to_the_pods_themselves(gateway: Rendered) -> None:
    """Behind a service's one address there would be nothing to choose from by the hash."""
    [rule] = gateway.one("GRPCRoute")["spec"]["rules"]
    [backend] = rule["backendRefs"]
    service = gateway.one("Service", backend["name"])["spec"]
    assert service["clusterIP"] == "None"
    assert backend["port"] in [port["port"] for port in service["ports"]]


def test_the_route_is_the_gateways(gateway: Rendered) -> None:
    [parent] = gateway.one("GRPCRoute")["spec"]["parentRefs"]
    listeners = gateway.one("Gateway", parent["name"])["spec"]["listeners"]
    [listener] = [each for each in listeners if each["name"] == parent["sectionName"]]
    assert [listener["hostname"]] == gateway.one("GRPCRoute")["spec"]["hostnames"]
    assert listener["protocol"] == "HTTPS", "the SDK sends tokens over TLS only"
    for policy in ("BackendTrafficPolicy", "ClientTrafficPolicy"):
        [target] = gateway.one(policy)["spec"]["targetRefs"]
        assert gateway.one(target["kind"], target["name"])["apiVersion"].startswith(target["group"] + "/")


def test_clients_reach_all_but_administration(gateway: Rendered) -> None:
    [rule] = gateway.one("GRPCRoute")["spec"]["rules"]
    services = {match["method"]["service"] for match in rule["matches"]}
    administration = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
    assert services == {*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME} - {administration}
    assert {match["method"]["type"] for match in rule["matches"]} == {"Exact"}


async def test_documents_go_where_the_sdk_says(gateway: Rendered) -> None:
    hashed = gateway.one("BackendTrafficPolicy")["spec"]["loadBalancer"]["consistentHash"]
    assert hashed["header"]["name"] == DOCUMENT_ID_METADATA
    services = SimpleNamespace(
        require_open=lambda: None, connection=SimpleNamespace(authorization=AsyncMock(return_value=[]))
    )
    call = Call(services, Attempts(RetryPolicy(), None), "emma")  # type: ignore[arg-type]
    assert (await call.options())["metadata"][DOCUMENT_ID_METADATA] == "emma"


def test_only_what_has_begun_nothing_is_tried_again(gateway: Rendered) -> None:
    spec = gateway.one("BackendTrafficPolicy")["spec"]
    assert set(spec["retry"]["retryOn"]["triggers"]) == {"connect-failure", "refused-stream", "reset", "unavailable"}
    assert "timeout" not in spec["retry"]["perRetry"], "a try may take as long as the call"
    assert spec["retry"]["perRetry"]["backOff"]


def test_only_ready_replicas_get_calls(gateway: Rendered) -> None:
    active = gateway.one("BackendTrafficPolicy")["spec"]["healthCheck"]["active"]
    assert active["grpc"]["service"] == READINESS
    assert READINESS not in SERVICES


def test_nothing_but_the_client_ends_a_long_stream(gateway: Rendered) -> None:
    behind = gateway.one("BackendTrafficPolicy")["spec"]["timeout"]["http"]
    before = gateway.one("ClientTrafficPolicy")["spec"]["timeout"]["http"]
    assert behind == {"requestTimeout": "0s", "maxStreamDuration": "0s", "streamIdleTimeout": "0s"}
    assert before == {"requestReceivedTimeout": "0s", "streamIdleTimeout": "0s"}


def test_the_proxy_drains_as_long_as_the_server(gateway: Rendered) -> None:
    reference = gateway.one("Gateway")["spec"]["infrastructure"]["parametersRef"]
    shutdown = gateway.one(reference["kind"], reference["name"])["spec"]["shutdown"]
    assert parse_duration(shutdown["drainTimeout"]) >= gateway.settings.drain_grace_seconds


def test_tls_between_gateway_and_pods() -> None:
    """Not part of an overlay: named by whoever uses the component `tls` behind the gateway."""
    policy = yaml.safe_load((KUBERNETES / "components" / "tls" / "backend-tls-policy.yaml").read_text(encoding="utf-8"))
    check(policy)
    [target] = policy["spec"]["targetRefs"]
    assert overlay("gateway").one("Service", target["name"])["spec"]["clusterIP"] == "None"


def test_what_is_scraped(gateway: Rendered) -> None:
    spec = gateway.one("ServiceMonitor")["spec"]
    selected = [
        service
        for service in gateway.all("Service")
        if spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    [endpoint] = spec["endpoints"]
    with_port = [
        service["metadata"]["name"]
        for service in selected
        if endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    ]
    assert with_port == ["reformer"], "each pod once"
    assert endpoint["path"] == "/metrics"


async def test_scaling_by_series_that_there_are(gateway: Rendered) -> None:
    """Of a server that has just been started, with all labels that the queries name but Prometheus' own."""
    async with running_server(tiny_served_model(ByteTokenizer()), FakeEngine()) as running:
        families = list(running.server.metrics.registry.collect())
    there = {(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples}
    queries = [trigger["metadata"]["query"] for trigger in gateway.one("ScaledObject")["spec"]["triggers"]]
    assert all('{namespace="reformer"' in query for query in queries)
    used = {
        (name, *sorted(re.findall(r'(\w+)="(\w+)"', labels.removeprefix('namespace="reformer"'))))
        for query in queries
        for name, labels in re.findall(r"(reformer_\w+)\{(.*?)\}", query)
    }
    assert {name for name, *_ in used} >= {"reformer_requests_waiting", "reformer_document_cache_bytes"}
    assert used - there == set()


def test_scaling_is_keda_s_alone(gateway: Rendered) -> None:
    scaled = gateway.one("ScaledObject")["spec"]
    target = scaled["scaleTargetRef"]
    stateful_set = gateway.one(target["kind"], target["name"])
    assert stateful_set["apiVersion"] == target["apiVersion"]
    assert "replicas" not in stateful_set["spec"], "each apply would undo what KEDA did"
    assert 2 <= scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda"},
        "spec": {
            "scaleTargetRef": target,
            "maxReplicas": scaled["maxReplicaCount"],
            "behavior": scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }
    kubernetes_validate.validate(autoscaler, "1.37", strict=True)
