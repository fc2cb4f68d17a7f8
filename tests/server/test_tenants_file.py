"""The tenants' file: what it gives, what is wrong with it, and when it is read again. Calls are in test_tenants.py."""

import json
import logging
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from reformer_server import SettingsError
from reformer_server.credentials import Credentials, new_token, token_hash
from reformer_server.errors import UnauthenticatedError, UnknownIdentityError
from reformer_server.reloading import Reloaded
from reformer_server.tenants import Limits, Tenant
from reformer_server.tenants_file import load_credentials
from reformer_server.token import token

TOKEN = "reformer_" + "x" * 43
HASH = token_hash(TOKEN)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.toml"


def load(file: Path, text: str) -> Credentials:
    file.write_text(text)
    return load_credentials(file)


def test_tenants_with_all_that_they_can_have(file: Path) -> None:
    tokens = [new_token() for _ in range(3)]
    credentials = load(
        file,
        f"""
        [tenants.acme]
        tokens = ["{token_hash(tokens[0])}", "{token_hash(tokens[1])}"]
        identities = ["cn:batch", "dns:batch.acme.example", "uri:spiffe://example/acme"]
        documents = 10
        document-bytes = "8GiB"
        streams = 3
        tokens-per-minute = 1_000_000

        [tenants."umbrella-2.eu"]
        tokens = ["{token_hash(tokens[2])}"]
        admin = true
        """,
    )
    acme, umbrella = credentials.tenants
    assert acme == Tenant("acme", Limits(10, 8 << 30, 3, 1_000_000))
    assert umbrella == Tenant("umbrella-2.eu", admin=True)
    assert [credentials.of_token(token) for token in tokens] == [acme, acme, umbrella]
    assert credentials.of_identities(["cn:batch", "dns:elsewhere"]) == acme
    assert credentials.of_identities(["uri:spiffe://example/acme"]) == acme


def test_who_is_unknown(file: Path) -> None:
    tables = (f'[tenants.{name}]\nidentities = ["dns:{name}.example"]\n' for name in ("a", "b"))
    credentials = load(file, "\n".join(tables))
    with pytest.raises(UnauthenticatedError) as refused:
        credentials.of_token(TOKEN)
    assert TOKEN not in str(refused.value)
    for names, message in (
        (["dns:c.example", "cn:a"], "no tenant has the names of this client certificate: cn:a, dns:c.example"),
        (["cn:a.example"], "no tenant"),
        ([], "no name that is looked at"),
        (["dns:a.example", "dns:b.example"], "2 tenants have"),
    ):
        with pytest.raises(UnknownIdentityError, match=message):
            credentials.of_identities(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenants 3", "line 1"),
        ("", r"must have a table \[tenants.NAME\]"),
        ("[tenants]", r"must have a table \[tenants.NAME\]"),
        ("tenants = 3", r"must have a table \[tenants.NAME\]"),
        ("[tenant.acme]\ntokens = []", r"must have a table \[tenants.NAME\]"),
        ("[tenants]\nacme = 3", "tenant 'acme': must be a table"),
        ("[tenants.acme]\nstreams = 3", "tenant 'acme': has neither tokens nor identities"),
        ("[tenants.Acme]\ntokens = []", "tenant 'Acme': a name must be"),
        ('[tenants."../x"]\ntokens = []', "tenant '../x': a name must be"),
        ("[tenants.anonymous]\ntokens = []", "tenant 'anonymous': this name is for calls without"),
        ("[tenants.acme]\ntokens = []\nstream = 3", "tenant 'acme': unknown key 'stream'; allowed are .*streams"),
        (f'[tenants.acme]\ntokens = "{HASH}"', "tenant 'acme': tokens: must be a list"),
        (f'[tenants.acme]\ntokens = ["{HASH}", 3]', r"tenant 'acme': tokens\[1\]: must be a hash"),
        (f'[tenants.acme]\ntokens = ["{HASH.upper()}"]', r"tokens\[0\]: must be a hash"),
        (f'[tenants.acme]\ntokens = ["{HASH[:-1]}"]', r"tokens\[0\]: must be a hash"),
        (f'[tenants.acme]\ntokens = ["{HASH}", "{HASH}"]', r"tokens\[1\]: tenant 'acme' has it already"),
        (
            f'[tenants.a]\ntokens = ["{HASH}"]\n[tenants.b]\ntokens = ["{HASH}"]',
            r"tenant 'b': tokens\[0\]: tenant 'a' has it",
        ),
        ('[tenants.acme]\nidentities = ["acme"]', r"identities\[0\]: must be 'cn:NAME'"),
        ('[tenants.acme]\nidentities = ["ip:10.0.0.1"]', r"identities\[0\]: must be 'cn:NAME'"),
        ('[tenants.a]\nidentities = ["cn:x"]\n[tenants.b]\nidentities = ["cn:x"]', "tenant 'b'.*'a' has it"),
        ("[tenants.acme]\ntokens = []\nstreams = 0", "tenant 'acme': streams: must be 1 or more, but is 0"),
        ('[tenants.acme]\ntokens = []\nadmin = "yes"', "admin: must be true or false, but is 'yes'"),
        ("[tenants.acme]\ntokens = []\ndocuments = true", "documents: must be 1 or more, but is True"),
        ("[tenants.acme]\ntokens = []\ntokens-per-minute = 1.5", "tokens-per-minute: must be 1 or more"),
        (
            '[tenants.acme]\ntokens = []\ndocument-bytes = "big"',
            "document-bytes: must be 1 or more bytes, but is 'big'",
        ),
    ],
)
def test_bad_files_are_refused_by_tenant_and_key(file: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(str(file))}: .*{message}"):
        load(file, text)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["tokens", "identities", "documents", "document-bytes", "streams", "tokens-per-minute"]),
            st.sampled_from(
                ["0", "-1", "3", "1.5", "1e400", "nan", "true", '""', '"8GiB"', f'"{"9" * 400}GiB"', "9" * 5000,
                 "[]", "[[]]", "[{}]", "[0]", '[""]', f'["{HASH}"]', '["cn:\\u0000"]', "{}", "{a.b = 1}", "2026-11-25"]
            ),
        ),
        unique_by=lambda entry: entry[0],
    )
)  # fmt: skip
def test_whatever_is_in_a_table_is_taken_or_refused(entries: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, "tenants.toml")
        told = f"{file}: "
        try:
            load(file, "\n".join(["[tenants.acme]", *(f"{key} = {value}" for key, value in entries)]))
        except SettingsError as error:
            told = str(error)
        assert told.startswith(f"{file}: ")


def test_a_token_in_place_of_its_hash_stays_secret(file: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load(file, f'[tenants.acme]\ntokens = ["{TOKEN}"]')
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    "content", [None, b"\xff\xfe", b"a = " + b"[" * 10_000], ids=["missing", "no text", "too deep"]
)
def test_files_that_cant_be_read(file: Path, content: bytes | None) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"tenants\.toml: "):
        load_credentials(file)


def test_the_command_makes_tokens_ready_to_paste(file: Path) -> None:
    results = [CliRunner().invoke(token, []) for _ in range(2)]
    secrets = [result.stdout.splitlines()[0].split()[1] for result in results]
    assert secrets[0] != secrets[1]
    for secret, result in zip(secrets, results, strict=True):
        assert re.fullmatch(r"reformer_[\w-]{43}", secret)
        assert result.output.count(secret) == 1
        assert load(file, f"[tenants.acme]\n{result.stdout.splitlines()[1]}").of_token(secret).name == "acme"


def test_the_command_as_json() -> None:
    facts = json.loads(CliRunner().invoke(token, ["--json"]).stdout)
    assert token_hash(facts["token"]) == facts["hash"]


# -- read again


def names(reloaded: Reloaded[Credentials]) -> list[str]:
    reloaded.poll()
    return [tenant.name for tenant in reloaded.value.tenants]


def watch(file: Path) -> Reloaded[Credentials]:
    return Reloaded([file], lambda: load_credentials(file))


def write(file: Path, name: str) -> None:
    file.write_text(f"[tenants.{name}]\ntokens = []\n")


def test_a_changed_file_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write(file, "a")
    reloaded = watch(file)
    assert names(reloaded) == ["a"]
    assert not caplog.records
    write(file, "b")
    assert names(reloaded) == names(reloaded) == ["b"]
    write(file.with_suffix(".new"), "c")
    file.with_suffix(".new").rename(file)
    assert names(reloaded) == ["c"]
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 2


def test_a_bad_file_changes_nothing_and_is_told_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(file, "a")
    reloaded = watch(file)
    for spoil in (lambda: file.write_text("[tenants.a]\nnonsense = 1"), file.unlink):
        caplog.clear()
        spoil()
        assert names(reloaded) == names(reloaded) == ["a"]
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "tenants.toml" in record.message
    write(file, "b")
    assert names(reloaded) == ["b"]


def test_the_links_of_a_kubernetes_secret_are_followed(tmp_path: Path) -> None:
    """file -> ..data/file, ..data -> ..<time>: an update replaces ..data, and removes the old folder."""
    for version in ("a", "b"):
        (tmp_path / f"..{version}").mkdir()
        write(tmp_path / f"..{version}" / "tenants.toml", version)
        os.utime(tmp_path / f"..{version}" / "tenants.toml", ns=(0, 0))  # neither time nor size tell them apart
    data, file = tmp_path / "..data", tmp_path / "tenants.toml"
    data.symlink_to("..a")
    file.symlink_to("..data/tenants.toml")
    reloaded = watch(file)
    assert names(reloaded) == ["a"]
    (tmp_path / "..data_tmp").symlink_to("..b")
    (tmp_path / "..data_tmp").rename(data)
    assert names(reloaded) == ["b"]
