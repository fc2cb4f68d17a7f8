"""deploy/README.md names what there is, and all of it."""

import re

from tests.deploy.manifests import KUBERNETES, ROOT

README = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")


def in_first_cells() -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", README, flags=re.M))


def test_every_path_exists() -> None:
    paths = {path for path in re.findall(r"`([\w./-]+)`", README) if path.startswith("kubernetes/")}
    assert {path for path in paths if not (ROOT / "deploy" / path).exists()} == set()
    links = re.findall(r"\]\((\.\./[^)#]+)", README)
    assert [link for link in links if not (ROOT / "deploy" / link).exists()] == []


def test_every_overlay_component_and_image_is_told() -> None:
    for overlay in (KUBERNETES / "overlays").iterdir():
        assert f"kubernetes/overlays/{overlay.name}" in in_first_cells()
    assert {path.name for path in (KUBERNETES / "components").iterdir()} <= in_first_cells()
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    for target in re.findall(r"--target (\S+)", dockerfile):
        assert f"`{target}`" in README


def test_what_each_component_needs_is_what_it_mounts() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (KUBERNETES / "components").rglob("*.yaml"))
    secrets = set(re.findall(r"secretName: (\S+)", text)) | set(re.findall(r"secretRef:\n\s+name: (\S+)", text))
    secrets |= set(re.findall(r"kind: Secret\n\s+name: (\S+)", text))
    assert {f"Secret `{secret}`" for secret in secrets} <= set(re.findall(r"Secret `[\w-]+`", README))
