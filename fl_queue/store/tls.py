"""
Encrypted connections whose settings are read once a process, not once a connection.

redis-py makes a new context for each connection, and reads all certificates of the machine for it:
forty milliseconds, several times a job. A context is kept here for as long as its files are the same;
work-horses inherit those of their worker.
"""

from __future__ import annotations

import ssl
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from redis.connection import SSLConnection

from fl_queue.common.redis_url import is_tls

#: A process needs one or two contexts; others are of files that have changed since.
_KEPT = 8
#: Options and file stamps of a context -> the context.
_contexts: dict[Hashable, ssl.SSLContext] = {}


class TLSConnection(SSLConnection):
    """
    redis-py's encrypted connection, with a cached TLS context.

    If a URL names a CA, only its certificates are accepted, and not those of the machine's own CAs: one of
    them may have issued another certificate for the server's name.
    """

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        if self.ssl_validate_ocsp or self.ssl_validate_ocsp_stapled:
            wrapped: ssl.SSLSocket = super()._wrap_socket_with_ssl(sock)
            return wrapped
        return self._context().wrap_socket(sock, server_hostname=self.host)

    def _context(self) -> ssl.SSLContext:
        files = (self.ca_certs, self.ca_path, self.certfile, self.keyfile)
        key = (
            *((path, _stamp(path)) for path in files),
            *(self.ca_data, self.certificate_password, self.cert_reqs, self.check_hostname),
            *(self.ssl_min_version, self.ssl_ciphers),
            *(
                tuple(self.ssl_include_verify_flags or ()),
                tuple(self.ssl_exclude_verify_flags or ()),
            ),
        )
        made = _contexts.get(key)
        if made is None:
            while len(_contexts) >= _KEPT:
                del _contexts[next(iter(_contexts))]
            made = _contexts[key] = self._made()
        return made

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context(
            cafile=self.ca_certs, capath=self.ca_path, cadata=self.ca_data
        )
        context.check_hostname = self.check_hostname
        context.verify_mode = self.cert_reqs
        for flag in self.ssl_include_verify_flags or ():
            context.verify_flags |= flag
        for flag in self.ssl_exclude_verify_flags or ():
            context.verify_flags &= ~flag
        if self.certfile or self.keyfile:
            context.load_cert_chain(self.certfile, self.keyfile, self.certificate_password)
        if self.ssl_min_version is not None:
            context.minimum_version = self.ssl_min_version
        if self.ssl_ciphers:
            context.set_ciphers(self.ssl_ciphers)
        return context


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    """Stamp of a file's state; None if it cannot be read, which is an error when it is loaded."""
    if not path:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def connection_options(url: str) -> dict[str, Any]:
    """redis-py's options for connections to a URL of one server."""
    return {"connection_class": TLSConnection} if is_tls(url) else {}
