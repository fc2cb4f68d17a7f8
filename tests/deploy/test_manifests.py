"""The manifests are valid, agree with the server's own settings and names, and give away no right that isn't needed."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from reformer_client.cli import main as command
from reformer_server import Settings
from reformer_server.health import LIVENESS, READINESS
from reformer_server.server import STOP_SECONDS
from reformer_server.settings import ENVIRONMENT_PREFIX, KEYS
from reformer_server.units import parse_size
from tests.deploy.manifests import KUBERNETES, ROOT, Manifest, Rendered, combined, overlay

VERSIONS = ("1.30", "1.37")  # the first that knows all that is used, and the latest
PROCESS_BYTES = 2**30  # Python, torch, and what is on its way to the store


def built_in(manifest: Manifest) -> bool:
    group = manifest["apiVersion"].partition("/")[0]
    return "." not in group or group in ("networking.k8s.io", "rbac.authorization.k8s.io")


def check_all(rendered: Rendered) -> None:
    for manifest in filter(built_in, rendered.manifests):
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_overlays_are_valid(rendered: Rendered) -> None:
    check_all(rendered)


def test_overlays_with_a_component_are_valid(with_component: Rendered) -> None:
    check_all(with_component)


def test_a_mistake_is_not_valid() -> None:
    manifest = overlay("cpu").one("PodDisruptionBudget")
    misspelt = {**manifest, "spec": {**manifest["spec"], "maxUnavailabel": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavailabel"):
        kubernetes_validate.validate(misspelt, VERSIONS[-1], strict=True)


def check_settings(rendered: Rendered) -> None:
    known = {ENVIRONMENT_PREFIX + key.upper().replace("-", "_") for key in KEYS.values()}
    assert set(rendered.environment) <= known
    own = {option.envvar for option in command.params if isinstance(option, click.Option)}
    assert own & known == set(), "the command itself would take what is the server's, in the pod and beside it"
    settings = rendered.settings  # which the server would accept
    container_ports = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    assert container_ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    assert (settings.port, settings.metrics_port) == (Settings().port, Settings().metrics_port)
    for service in rendered.all("Service"):
        assert {port["name"]: port["port"] for port in service["spec"]["ports"]}.items() <= container_ports.items()
    for path in (settings.tenants, settings.tls_certificate, settings.tls_key):
        assert path is None or mounted(rendered, str(path))
    assert settings.model is None or mounted(rendered, settings.model)
    assert (settings.store_url or "").startswith("s3://") or mounted(rendered, settings.store_url or "")


def mounted(rendered: Rendered, path: str) -> bool:
    """Whether the path is below a volume that the pod has."""
    volumes = {volume["name"] for volume in rendered.pod["volumes"]}
    volumes |= {
        claim["metadata"]["name"] for claim in rendered.one("StatefulSet")["spec"].get("volumeClaimTemplates", [])
    }
    mounts = rendered.container["volumeMounts"]
    assert {mount["name"] for mount in mounts} == volumes
    return any(Path(path).is_relative_to(mount["mountPath"]) for mount in mounts if mount["name"] != "tmp")


def test_settings(rendered: Rendered) -> None:
    check_settings(rendered)


def test_settings_with_a_component(with_component: Rendered) -> None:
    check_settings(with_component)


def test_the_store_fits_its_volume(rendered: Rendered) -> None:
    claims = rendered.all("PersistentVolumeClaim") or rendered.one("StatefulSet")["spec"]["volumeClaimTemplates"]
    [claim] = claims
    assert rendered.settings.store_quota_bytes is not None
    assert rendered.settings.store_quota_bytes < parse_size(claim["spec"]["resources"]["requests"]["storage"] + "B")


def test_probes_ask_for_what_the_server_says(rendered: Rendered) -> None:
    """Which names the server knows, and what they mean: tests/server/test_health.py."""
    port, container = rendered.settings.port, rendered.container
    assert container["startupProbe"]["grpc"] == {"port": port, "service": LIVENESS}
    assert container["livenessProbe"]["grpc"] == {"port": port, "service": LIVENESS}
    assert container["readinessProbe"]["grpc"] == {"port": port, "service": READINESS}


def test_with_tls_probes_ask_the_metrics_port(tmp_path: Path) -> None:
    container = combined(tmp_path, "cpu", "tls").container
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert "grpc" not in container[probe]
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}


def test_time_to_drain(rendered: Rendered) -> None:
    """Kubernetes' clock runs from the beginning of preStop; nothing must be killed that the server would let finish."""
    before = rendered.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + rendered.settings.drain_grace_seconds + STOP_SECONDS
    assert rendered.pod["terminationGracePeriodSeconds"] >= needed + 30
    readiness = rendered.container["readinessProbe"]
    assert before >= readiness["periodSeconds"] * readiness["failureThreshold"] / 2


def test_memory_on_a_cpu() -> None:
    rendered = overlay("cpu")
    resources, settings = rendered.container["resources"], rendered.settings
    assert settings.device == "cpu"
    assert settings.memory_bytes is not None
    limit = parse_size(resources["limits"]["memory"] + "B")
    assert settings.memory_bytes + settings.upload_memory_bytes + PROCESS_BYTES <= limit
    assert resources["requests"] == resources["limits"]


def test_a_gpu_each() -> None:
    rendered = overlay("gpu")
    resources = rendered.container["resources"]
    assert rendered.settings.device == "cuda"
    assert rendered.settings.memory_bytes is not None
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in rendered.pod["tolerations"]


def test_threads_are_as_many_as_cores(rendered: Rendered) -> None:
    [variable] = [each for each in rendered.container["env"] if each["name"] == "OMP_NUM_THREADS"]
    assert variable["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert rendered.container["resources"]["limits"]["cpu"].isdigit()


def selectors(value: Any) -> Iterator[dict[str, str]]:
    """All that chooses pods, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("selector", "podSelector", "labelSelector") and isinstance(inner, dict):
                yield inner.get("matchLabels", inner)
            yield from selectors(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from selectors(inner)


def test_selectors_find_the_pods(rendered: Rendered) -> None:
    labels = rendered.one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    for kind in ("StatefulSet", "Service", "PodDisruptionBudget"):
        for manifest in rendered.all(kind):
            found = list(selectors(manifest["spec"]))
            assert found, manifest["metadata"]["name"]
            assert all(selector and selector.items() <= labels.items() for selector in found)
    for policy in rendered.all("NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_pods_have_names_of_their_own(rendered: Rendered) -> None:
    stateful_set = rendered.one("StatefulSet")["spec"]
    assert rendered.one("Service", stateful_set["serviceName"])["spec"]["clusterIP"] == "None"
    assert rendered.one("Service")["spec"].get("clusterIP") is None
    assert [each["topologyKey"] for each in rendered.pod["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    assert rendered.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_more_than_one_replica_share_a_store(rendered: Rendered) -> None:
    stateful_set = rendered.one("StatefulSet")["spec"]
    if stateful_set.get("replicas") == 1:
        return
    assert "volumeClaimTemplates" not in stateful_set
    [claim] = rendered.all("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_stores_and_the_keys_for_them(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "cpu", "store-s3")
    assert {"secretRef": {"name": "reformer-store", "optional": True}} in rendered.container["envFrom"]
    ports = [port["port"] for rule in rendered.one("NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]
    assert ports == [443, 53, 53]


def test_credentials_are_asked_for(tmp_path: Path) -> None:
    settings = combined(tmp_path, "cpu", "tenants", "tls").settings
    assert settings.has_credentials
    assert settings.tls_certificate is not None
    assert overlay("gateway").settings.has_credentials


def test_images_are_of_this_version(rendered: Rendered) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    image = rendered.container["image"]
    assert re.fullmatch(rf"reformer-serve:{re.escape(version)}-(cpu|cuda)", image)
    assert image.endswith("-cuda") == (rendered.settings.device == "cuda")
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert f"-t {image} " in dockerfile


def test_pods_run_as_the_image_does(rendered: Rendered) -> None:
    context = rendered.pod["securityContext"]
    user = f"USER {context['runAsUser']}:{context['runAsGroup']}\n"
    assert user in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def test_every_file_is_used() -> None:
    """But the one that is there to be named by whoever needs it."""
    named = {KUBERNETES / "components" / "tls" / "backend-tls-policy.yaml"}
    for kustomization in KUBERNETES.rglob("kustomization.yaml"):
        content = yaml.safe_load(kustomization.read_text(encoding="utf-8"))
        files = content.get("resources", []) + [
            patch["path"] for patch in content.get("patches", []) if "path" in patch
        ]
        named |= {kustomization, *(kustomization.parent / file for file in files)}
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} - named == set()
