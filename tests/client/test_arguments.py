"""Arguments that can't be sent are refused by name, before anything is."""

import math

import pytest

from reformer_client import Client
from tests.client.fake_server import FakeServer


@pytest.mark.parametrize("lease_seconds", [0, -1, math.nan, math.inf])
def test_leases(client: Client, server: FakeServer, lease_seconds: float) -> None:
    with pytest.raises(ValueError, match="lease_seconds must be above 0"):
        client.documents.create("text", lease_seconds=lease_seconds)
    with pytest.raises(ValueError, match="lease_seconds must be above 0"):
        client.documents.renew("war", lease_seconds)
    assert not server.count("CreateDocument")
    assert not server.count("RenewDocument")


@pytest.mark.parametrize("prompt", [5, 1.5, b"text", object()])
def test_prompts(client: Client, server: FakeServer, prompt: object) -> None:
    with pytest.raises(TypeError, match="pass a str"):
        next(iter(client.generate(prompt)))
    assert not server.count("Generate")
