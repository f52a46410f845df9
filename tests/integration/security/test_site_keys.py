"""Keys that sites make: enrolled by their public half alone, compared as a list, and refused where they do not fit."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fl_queue.cli import cli
from fl_queue.client.site import WorkerSettings
from fl_queue.errors import ConfigError, FLQueueError
from fl_queue.protocol import parties, signing
from fl_queue.protocol.header import Header
from fl_queue.protocol.message import pack
from fl_queue.protocol.operator_key import fingerprint
from fl_queue.store import Store, credentials
from fl_queue.store.embedded import server_pair
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.server_binaries import chosen_server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    folder = tmp_path_factory.mktemp("operator") / "state"
    with server_pair.start(folder, tcp=True, server=chosen_server()) as redis:
        yield redis


def command(servers: EmbeddedRedis, *arguments: str) -> Result:
    environment = {"FLQ_REDIS_URL": servers.url, "FLQ_REDIS_BLOB_URL": servers.blob_url}
    environment["FLQ_STATE_DIR"] = str(servers.state_dir)
    return CliRunner().invoke(cli, list(arguments), env=environment)


def done(servers: EmbeddedRedis, *arguments: str) -> str:
    result = command(servers, *arguments)
    assert result.exception is None, result.output
    return result.stdout


def refusal(servers: EmbeddedRedis, *arguments: str) -> str:
    result = command(servers, *arguments)
    assert isinstance(result.exception, FLQueueError), result.output
    return str(result.exception)


def with_own_key(servers: EmbeddedRedis, client: str, folder: Path) -> WorkerSettings:
    """A site that made its key, and was enrolled with the line that it printed."""
    key, file = folder / f"{client}.key", folder / f"{client}.toml"
    line = done(servers, "keygen", "-o", str(key)).splitlines()[0]
    done(servers, "enroll", client, "--public-key", line, "-o", str(file))
    return WorkerSettings(client=client, credentials=str(file), key=str(key))


def test_a_site_signs_with_a_key_that_the_operator_never_had(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    site = with_own_key(servers, "hospital-a", tmp_path)
    known = Store(servers.url, servers.blob_url).control.enrolments.get("hospital-a")
    assert known is not None

    element = pack(Header(kind="failure", run="r", round=1, client="hospital-a", token="t"), None)
    sealed = signing.opened(site.seal(element))
    assert sealed is not None
    assert signing.is_signed_by(sealed, known.key)
    assert stat.S_IMODE(Path(site.key).stat().st_mode) == 0o600
    handed = Path(site.credentials).read_text()
    assert credentials.read(Path(site.credentials)).signing_key == ""
    assert "--key KEY-FILE" in handed
    secret = site.signing_key
    everything = b"".join(
        path.read_bytes() for path in servers.state_dir.rglob("*") if path.is_file()
    )
    assert secret.encode() not in everything
    assert secret not in handed


def test_the_list_of_parties_is_what_sites_pin(servers: EmbeddedRedis, tmp_path: Path) -> None:
    sites = [with_own_key(servers, client, tmp_path) for client in ("clinic-a", "clinic-b")]
    done(servers, "enroll", "evaluator", "-o", str(tmp_path / "evaluator.toml"))
    done(servers, "enroll", "clinic-c", "-o", str(tmp_path / "clinic-c.toml"))
    done(servers, "revoke", "clinic-c")
    file = tmp_path / "parties.toml"
    rows = json.loads(done(servers, "parties", "-o", str(file), "--json"))

    listed = {row["client"]: row for row in rows}
    assert not {"evaluator", "clinic-c"} & listed.keys()
    for site in sites:
        public = signing.public_half(site.signing_key)
        assert listed[site.client]["key"] == public
        assert listed[site.client]["fingerprint"] == fingerprint(public)
    pinned = replace(sites[0], peers=str(file)).pinned_peers
    assert pinned is not None
    assert pinned == parties.read(file)
    assert pinned.keys == {row["client"]: row["key"] for row in rows}


def test_a_key_that_does_not_fit_is_refused_with_the_way_out(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    site = with_own_key(servers, "praxis-a", tmp_path)
    other = tmp_path / "other.key"
    line = done(servers, "keygen", "-o", str(other)).splitlines()[0]
    plain = tmp_path / "praxis-b.toml"
    done(servers, "enroll", "praxis-b", "-o", str(plain))

    with pytest.raises(
        ConfigError, match="--key: is missing: praxis-a was enrolled with a key of its own"
    ):
        _ = replace(site, key="").signing_key
    with pytest.raises(ConfigError, match="is not the key with which praxis-a was enrolled"):
        _ = replace(site, key=str(other)).signing_key
    with pytest.raises(ConfigError, match="has a key that the operator made"):
        _ = replace(site, credentials=str(plain)).signing_key
    Path(site.key).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        _ = replace(site).signing_key
    assert "chmod 600" in refusal(
        servers, "worker", "client", "--credentials", site.credentials, "--key", site.key
    )
    assert "is there and stays as it is" in refusal(servers, "keygen", "-o", str(other))
    new = str(tmp_path / "new.toml")
    assert "is not a key" in refusal(
        servers, "enroll", "praxis-c", "--public-key", "abc", "-o", new
    )
    assert "evaluator's key is made here" in refusal(
        servers, "enroll", "evaluator", "--public-key", line, "-o", new
    )
    used = signing.public_half(credentials.read(plain).signing_key)
    assert "is the key of praxis-b" in refusal(
        servers, "enroll", "praxis-c", "--public-key", used, "-o", new
    )
    assert "--key: needs --credentials" in refusal(
        servers, "worker", "client", "--client", "praxis-a", "--key", str(other)
    )


def test_the_rules_of_a_site_reach_its_worker(tmp_path: Path) -> None:
    site = WorkerSettings(
        state_dir=tmp_path,
        key="/k",
        peers="/p",
        require_secure=True,
        min_cohort=5,
        worker="w",
        token="t",
    )

    assert WorkerSettings.from_environ(site.to_environ()) == site
    assert WorkerSettings.from_environ({}).min_cohort == 3
