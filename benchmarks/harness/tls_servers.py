"""Redis servers with mutual TLS on loopback, and the certificate authority for them."""

from __future__ import annotations

import datetime
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fl_queue.store.embedded import server_binary

HOST = "localhost"
_START_S = 30.0


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """
    A certificate authority that lives as long as the benchmark.

    Args:
        folder: Receives the certificates and keys.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("fl-queue benchmark")
        basic = x509.BasicConstraints(ca=True, path_length=0)
        own = self._builder(self._name, self._key).add_extension(basic, critical=True)
        #: The root certificate, as a PEM file.
        self.certificate = folder / "ca.crt"
        self._sign(own, self.certificate)

    def issue(self, name: str) -> CertificateFiles:
        """Issue a certificate for a host name or a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        made = self._builder(_common_name(name), key).add_extension(names, critical=False)
        files = CertificateFiles(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        self._sign(made, files.certificate)
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

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

    def _sign(self, builder: x509.CertificateBuilder, path: Path) -> None:
        signed = builder.sign(self._key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@contextmanager
def tls_server(
    folder: Path, authority: Authority, password: str, *, durable: bool = False
) -> Iterator[int]:
    """
    Run a server that accepts TLS with client certificates only; yields its port.

    Args:
        folder: Receives its configuration, users and log; must not exist.
        authority: Issues its certificate, and has issued those of its clients.
        password: Of the default user.
        durable: Append-only file with an fsync for each write, as on a control server.

    Raises:
        RuntimeError: It ended or did not accept connections in time.
    """
    folder.mkdir(parents=True)
    port, files = _free_port(), authority.issue(HOST)
    lines = ["port 0", f"tls-port {port}", "bind 127.0.0.1", 'save ""', f"dir {folder}"]
    lines += [f"tls-cert-file {files.certificate}", f"tls-key-file {files.key}"]
    lines += [f"tls-ca-cert-file {authority.certificate}", "tls-auth-clients yes"]
    lines += [f"aclfile {folder}/users.acl", "logfile redis.log"]
    lines += ["appendonly yes", "appendfsync always"] if durable else ["appendonly no"]
    (folder / "redis.conf").write_text("\n".join(lines) + "\n")
    (folder / "users.acl").write_text(f"user default on >{password} ~* &* +@all\n")
    process = subprocess.Popen([_server_with_tls(), folder / "redis.conf"], cwd=folder)
    try:
        _await_ready(process, folder / "redis.log")
        yield port
    finally:
        process.kill()
        process.wait()


def url(port: int, password: str, authority: Authority, files: CertificateFiles) -> str:
    """URL of a server for the owner of a certificate."""
    options = {
        "ssl_ca_certs": authority.certificate,
        "ssl_certfile": files.certificate,
        "ssl_keyfile": files.key,
    }
    return f"rediss://:{password}@{HOST}:{port}/0?{urlencode(options)}"


def _server_with_tls() -> Path:
    """
    The first installed server with TLS.

    Raises:
        RuntimeError: None has it.
    """
    for path in server_binary.candidates():
        # A build without TLS stops at the unknown option; one with TLS asks for a certificate.
        tried = subprocess.run(
            [path, "-"],
            input="port 0\ntls-port 1\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "tls-cert-file" in tried.stdout:
            return path
    raise RuntimeError("needs a redis-server with TLS (Debian: apt-get install redis-server)")


def _await_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_S
    while not (log.exists() and "Ready to accept connections" in log.read_text()):
        if process.poll() is not None or time.monotonic() > until:
            written = log.read_text() if log.exists() else "no log"
            raise RuntimeError(f"redis-server with TLS did not start: {written}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
