"""Renders what is in deploy/kubernetes, as `kubectl apply -k` does."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from reformer_server import Settings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
TOOLS = Path(sys.executable).parent

Manifest = dict[str, Any]


@cache
def render(folder: Path) -> "Rendered":
    """What a folder with a kustomization says. Fails with kubectl's own words."""
    result = subprocess.run([TOOLS / "kubectl", "kustomize", folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "kustomize warns of what is deprecated"
    return Rendered([manifest for manifest in yaml.safe_load_all(result.stdout) if manifest])


def overlay(name: str) -> "Rendered":
    """One of the overlays that are there."""
    return render(KUBERNETES / "overlays" / name)


def combined(folder: Path, overlay: str, *components: str) -> "Rendered":
    """An overlay and components, put together in `folder` as a user would."""
    beside = Path(os.path.relpath(KUBERNETES, folder.resolve()))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "reformer",
        "resources": [str(beside / "overlays" / overlay)],
        "components": [str(beside / "components" / component) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return render(folder)


@dataclass(frozen=True, eq=False)
class Rendered:
    """All manifests of an installation."""

    manifests: list[Manifest]

    def all(self, kind: str) -> list[Manifest]:
        """Those of a kind."""
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str, name: str = "reformer") -> Manifest:
        """The one of that name."""
        [found] = [manifest for manifest in self.all(kind) if manifest["metadata"]["name"] == name]
        return found

    @property
    def pod(self) -> dict[str, Any]:
        """The replicas' pods."""
        spec: dict[str, Any] = self.one("StatefulSet")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        """The server."""
        [container] = self.pod["containers"]
        return dict(container)

    @property
    def environment(self) -> dict[str, str]:
        """What the server is told by the ConfigMap that it really gets."""
        [name] = [each["configMapRef"]["name"] for each in self.container["envFrom"] if "configMapRef" in each]
        return dict(self.one("ConfigMap", name)["data"])

    @property
    def settings(self) -> Settings:
        """What the server makes of it. Raises SettingsError where it would refuse to start."""
        return Settings.load({}, self.environment)
