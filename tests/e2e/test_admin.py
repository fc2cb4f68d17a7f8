"""`reformer admin` and SIGHUP, as operators use them: on a real server, from the shell."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.serving import ServerProcess, reformer
from reformer_client import Client, UnavailableError
from reformer_server.credentials import new_token, token_hash
from tests.e2e.conftest import until

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 20


def admin(server: ServerProcess, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"REFORMER_SERVER": server.address} | ({"REFORMER_TOKEN": token} if token else {})
    return subprocess.run(reformer("admin", *arguments), env=environment, capture_output=True, text=True, timeout=60)


def test_a_server_is_looked_into_and_taken_out_of_service(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    acme, operations = new_token(), new_token()
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(
        f'[tenants.acme]\ntokens = ["{token_hash(acme)}"]\n'
        f'[tenants.operations]\ntokens = ["{token_hash(operations)}"]\nadmin = true\n'
    )
    server = serve("--memory", "500MiB", "--tenants", tenants, "--store", tmp_path / "store")
    with Client(server.address, token=acme) as client:
        client.documents.create(TEXT, document_id="report")
        client.documents.create(TEXT[:300], document_id="note")
        until(lambda: client.documents.get("note").info.stored and client.documents.get("report").info.stored)

        refused = admin(server, "documents", token=acme)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "tenant 'acme' is no admin" in refused.stderr
        lines = admin(server, "documents", token=operations).stdout.splitlines()
        assert [line.split()[:3] for line in lines[1:]] == [["acme", "report", "1,820"], ["acme", "note", "300"]]
        listed = [
            json.loads(line) for line in admin(server, "documents", "--json", token=operations).stdout.splitlines()
        ]
        assert [(each["tenant"], each["info"]["stored"], each["in_memory"]) for each in listed] == [
            ("acme", True, True)
        ] * 2

        assert "state           serving\n" in admin(server, "load", token=acme).stdout
        stream = client.generate("x", max_tokens=300)
        next(stream)
        drained = admin(server, "drain", token=operations)
        assert (drained.returncode, drained.stdout) == (0, "drained: the server can be stopped\n"), drained.stderr
        assert sum(1 for _ in stream) == 299
        assert json.loads(admin(server, "load", "--json", token=acme).stdout)["draining"] is True
        with pytest.raises(UnavailableError):
            client.score("x", timeout=1)
    assert server.stop() == 0


def test_settings_are_read_again(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('log-level = "warning"\nmemory = "500MiB"\n')
    server = serve("--config", config)
    config.write_text('log-level = "info"\nmemory = "600MiB"\ndrain-grace = "100ms"\n')
    server.process.send_signal(signal.SIGHUP)
    with Client(server.address) as client:
        stream = client.generate("x", max_tokens=10**5)
        next(stream)
        assert server.stop() == 0  # within the new grace period: the stream would take longer
        with pytest.raises(UnavailableError):
            list(stream)
