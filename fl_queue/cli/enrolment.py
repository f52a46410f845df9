"""
The commands about who takes part: ``enroll`` and ``revoke``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click

from fl_queue.cli.options import (
    Command,
    Where,
    connection_options,
    output_option,
    say,
    signing_option,
)
from fl_queue.common.redis_url import is_tls, without_login
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol import operator_key
from fl_queue.store import credentials, exposure, resolve_urls

_no_acl = click.option(
    "--no-acl",
    is_flag=True,
    help="Change no Redis users; print what whoever may has to do.",
)


def _pem_option(name: str, what: str) -> Callable[[Command], Command]:
    return click.option(
        name, type=click.Path(dir_okay=False, path_type=Path), default=None, help=what
    )


@click.command()
@click.argument("client", required=False)
@output_option("Credentials to hand over.", required=False)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option(
    "--max-examples",
    default=0,
    type=click.IntRange(min=0),
    help="More examples in a round count as so many. Default: that of the config.",
)
@click.option("--site-url", default="", help="Control server as the site reaches it.")
@click.option("--site-blob-url", default="", help="Data server as the site reaches it.")
@_pem_option("--tls-ca", "Certificate that signed the servers'. Default: ssl_ca_certs of the URL.")
@_pem_option("--tls-cert", "The site's own certificate, for mutual TLS.")
@_pem_option("--tls-key", "Its key.")
@click.option(
    "--open-server",
    is_flag=True,
    help="Enrol although a server lets in anybody without a password.",
)
@click.option(
    "--sign-existing",
    is_flag=True,
    help="Without CLIENT: sign those enrolled before there was an operator's key.",
)
@click.option("--yes", is_flag=True, help="With --sign-existing: do not ask.")
@_no_acl
@connection_options
@signing_option
def enroll(
    where: Where,
    client: str | None,
    output: Path | None,
    force: bool,
    max_examples: int,
    site_url: str,
    site_blob_url: str,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    open_server: bool,
    sign_existing: bool,
    yes: bool,
    no_acl: bool,
) -> None:
    """
    Create what CLIENT needs to take part, in one file.

    CLIENT is a client id, or `evaluator`. The file has its Redis user, its signing key and where
    Redis is; the site runs `fl-queue worker client --credentials FILE`. The control server learns the
    public key. Enrolling again makes everything anew.

    The first time, the operator's own key is made, too, in this machine's state folder. It stays here:
    the file has its public half, with which the site checks what the operator signs.

    Who is enrolled is decided by this machine's state folder: each enrolment is signed, and kept in
    `enrolled/`. Run it where the aggregator runs, or copy `operator.key` and `enrolled/` there.
    """
    if sign_existing:
        if client or output:
            raise ConfigError("--sign-existing", "goes without CLIENT and --output")
        _sign_existing(where, yes)
        return
    if client is None or output is None:
        raise ConfigError(
            *(("CLIENT", "name one") if client is None else ("--output", "name a file"))
        )
    url, blob_url = resolve_urls(where.url, where.blob_url, where.state_dir)
    tls = _tls(url, tls_ca, tls_cert, tls_key)
    url, blob_url = without_login(url), without_login(blob_url)
    credentials.check_place(output, force)
    place = RedisEndpoints(
        site_url or url, site_blob_url or (site_url if url == blob_url else "") or blob_url, tls
    )
    made = enrolment.enroll(where.open(), client, place, max_examples, not no_acl, open_server)
    credentials.write(output, made.credentials, force)
    if no_acl:
        for server, users in made.rules.items():
            say(f"# {server} server, a line of its aclfile each")
            for name, rules in users.items():
                say(f"user {name} {' '.join(rule for rule in rules if rule != 'reset')}")
    for note in _notes(where, made):
        say(f"Note: {note}.", err=True)
    say(
        f"{output}: credentials of {client}, for Redis at {without_login(place.url)}; hand it over "
        "where nobody else reads it.",
        err=True,
    )


def _sign_existing(where: Where, yes: bool) -> None:
    store = where.open()
    found = enrolment.unsigned(store)
    for client, known in found.items():
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(known.enrolled_at))
        state = "revoked" if known.revoked_at else f"enrolled {since}"
        say(f"{client}: {state}, its key is {operator_key.fingerprint(known.key)}")
    if found and not yes:
        click.confirm(
            "Did you enrol each of them? From now on these keys count, and no others", abort=True
        )
    for line in enrolment.sign_existing(store, found) or ["nothing was to be signed"]:
        say(line)
    key = store.control.enrolments.pins.key
    if key is not None and found:
        say(f'Sites may add to their credentials files: operator_key = "{key.public}"')


@click.command()
@click.argument("client")
@_no_acl
@connection_options
@signing_option
def revoke(where: Where, client: str, no_acl: bool) -> None:
    """
    End the part of CLIENT.

    From now on no update of it is accepted, and no round selects it or waits for it. Its jobs, its
    Redis users and their connections end. `fl-queue enroll` lets it in again.
    """
    for line in enrolment.revoke(where.open(), client, not no_acl):
        say(line)


def _notes(where: Where, made: enrolment.Enrolled) -> list[str]:
    """What the operator should know, once each."""
    handed = (made.credentials.url, made.credentials.blob_url)
    risks = [risk for url in (where.url, where.blob_url) for risk in exposure.of_url(url)]
    risks += [risk for url in handed for risk in exposure.of_site_url(url)]
    return [*made.notes, *dict.fromkeys(f"{what}; {fix}" for what, fix in risks)]


def _tls(url: str, ca: Path | None, cert: Path | None, key: Path | None) -> dict[str, str]:
    if (cert is None) != (key is None):
        raise ConfigError("--tls-cert", "goes with --tls-key")
    given = parse_qs(urlsplit(url).query).get("ssl_ca_certs") if is_tls(url) else None
    ca = ca or (Path(given[0]) if given else None)
    wanted = {"ca": ca, "certificate": cert, "key": key}
    return {part: _pem(path) for part, path in wanted.items() if path is not None}


def _pem(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(str(path), "cannot be read as PEM text") from exc
    if "-----BEGIN " not in text or '"""' in text:
        raise DataError(str(path), "is not PEM text")
    return text
