"""Every overlay, and every component by itself."""

from pathlib import Path

import pytest

from tests.deploy.manifests import KUBERNETES, Rendered, combined, overlay

OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return overlay(request.param)


@pytest.fixture(params=COMPONENTS)
def with_component(request: pytest.FixtureRequest, tmp_path: Path) -> Rendered:
    """The simplest overlay and one component: each can be had without the others."""
    return combined(tmp_path, "cpu", request.param)
