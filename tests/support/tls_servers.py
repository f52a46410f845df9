"""A CA, certificates, and redis-servers that speak nothing but TLS, for tests."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.federation import wait_for
from tests.support.redis_cluster import free_port
from tests.support.server_binaries import with_tls


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority of its own. Args: ``folder``: for the files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        own = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.cert = folder / "ca.crt"
        self.cert.write_bytes(_pem(own.sign(self._key, hashes.SHA256())))

    def issue(self, name: str) -> Pair:
        """A certificate for a host name, or for a client of that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False
        )
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        pair.cert.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return pair

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


class TLSServer:
    """
    A redis-server with mutual TLS, an aclfile, and a password for its operator.

    Args:
        authority: Signs what it shows, and what clients have to show.
        password: Of the default user.
        name: The host its certificate is for.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        password: str,
        *,
        durable: bool = False,
        name: str = "localhost",
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.port = folder, free_port()
        pair = authority.issue(name)
        lines = ["port 0", f"tls-port {self.port}", "bind 127.0.0.1", 'save ""', f"dir {folder}"]
        lines += [f"tls-cert-file {pair.cert}", f"tls-key-file {pair.key}"]
        lines += [f"tls-ca-cert-file {authority.cert}", "tls-auth-clients yes"]
        lines += [f"aclfile {folder}/users.acl", "logfile redis.log"]
        lines += ["appendonly yes", "appendfsync always"] if durable else ["appendonly no"]
        (folder / "redis.conf").write_text("\n".join(lines) + "\n")
        (folder / "users.acl").write_text(f"user default on >{password} ~* &* +@all\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([with_tls(), self.folder / "redis.conf"], cwd=self.folder)
        wait_for("a TLS server", self._is_ready)

    def kill(self) -> None:
        """End it without a word."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        log = self.folder / "redis.log"
        # Of the newest start.
        text = log.read_text() if log.exists() else ""
        return "Ready to accept connections" in text.rpartition(" is starting")[2]


@contextmanager
def tls_servers(
    folder: Path, authority: Authority, password: str
) -> Iterator[tuple[TLSServer, TLSServer]]:
    """A control and a data server."""
    control = TLSServer(folder / "control", authority, password, durable=True)
    data = TLSServer(folder / "data", authority, password, durable=False)
    try:
        control.start()
        data.start()
        yield control, data
    finally:
        control.kill()
        data.kill()


def url(
    server: TLSServer, password: str, ca: Path, own: Pair | None, host: str = "localhost"
) -> str:
    """A URL with everything it takes."""
    options = {"ssl_ca_certs": str(ca)}
    if own is not None:
        options |= {"ssl_certfile": str(own.cert), "ssl_keyfile": str(own.key)}
    login = f":{password}@" if password else ""
    return f"rediss://{login}{host}:{server.port}/0?{urlencode(options)}"
