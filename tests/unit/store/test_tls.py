"""Encrypted connections: files are read once, only the named CA is trusted, and a wrong name has a clear message."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_queue.errors import StoreUnavailable
from fl_queue.store import Store, plain_client
from tests.support.tls_servers import Authority, TLSServer, url

PASSWORD = "open-sesame-4711"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, no_process_left: None
) -> Iterator[TLSServer]:
    yield from running(TLSServer(tmp_path_factory.mktemp("tls") / "one", authority, PASSWORD))


def running(server: TLSServer) -> Iterator[TLSServer]:
    server.start()
    yield server
    server.kill()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The CA of each context that is made from now on."""
    found: list[str] = []
    plain = ssl.create_default_context

    def counted(*args: object, cafile: str | None = None, **options: object) -> ssl.SSLContext:
        found.append(str(cafile))
        return plain(*args, cafile=cafile, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    return found


def test_settings_are_read_once_for_all_connections_of_a_process(
    server: TLSServer, authority: Authority, tmp_path: Path, made: list[str]
) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.cert.read_bytes())
    where = url(server, PASSWORD, ca, authority.issue("operator"))
    for _ in range(3):
        with Store(where, where) as store:
            store.check()
        with plain_client(where, 5.0) as client:
            assert client.ping()

    assert made == [str(ca)]


def test_a_certificate_that_was_replaced_is_read_again(
    server: TLSServer, authority: Authority, tmp_path: Path, made: list[str]
) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(Authority(tmp_path / "stranger").cert.read_bytes())
    where = url(server, PASSWORD, ca, authority.issue("operator"))
    with pytest.raises(StoreUnavailable), Store(where, where) as store:
        store.check()
    ca.write_bytes(authority.cert.read_bytes())

    with Store(where, where) as store:
        store.check()
    assert len(made) == 2


def test_where_a_ca_is_named_no_other_is_trusted(
    server: TLSServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine trusts the CA of the server; the URL names another one."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    own = authority.issue("operator")
    there = f"rediss://:{PASSWORD}@localhost:{server.port}/0?ssl_certfile={own.cert}&ssl_keyfile={own.key}"
    with Store(there, there) as store:
        store.check()
    named = url(server, PASSWORD, Authority(tmp_path / "private").cert, own)

    with (
        pytest.raises(StoreUnavailable, match="not signed by the CA that is trusted here"),
        Store(named, named) as store,
    ):
        store.check()


def test_a_certificate_for_another_host_has_a_clear_message(
    authority: Authority, tmp_path: Path
) -> None:
    server = TLSServer(tmp_path / "elsewhere", authority, PASSWORD, name="redis.example")
    where = url(server, PASSWORD, authority.cert, authority.issue("operator"))
    for _ in running(server):
        with pytest.raises(StoreUnavailable) as caught, Store(where, where) as store:
            store.check()

    shown = str(caught.value)
    assert shown.startswith(f"Redis at rediss://:***@localhost:{server.port}/0?")
    assert (
        "its certificate is for another name; connect by a name that is in it, "
        "or have one made for this name" in shown
    )
    assert "'localhost'" in shown  # The name that was looked for.
