"""``fl-queue enroll`` and ``fl-queue revoke``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click

from fl_queue.cli.options import (
    Deployment,
    collect,
    connection_options,
    file_option,
    json_option,
    output_option,
    signing_option,
    yes_option,
)
from fl_queue.cli.output import print_json, print_line, print_result, warn
from fl_queue.common.redis_url import is_tls, without_login
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol import operator_key
from fl_queue.store import credentials, exposure, resolve_urls

_no_acl = click.option(
    "--no-acl",
    is_flag=True,
    help="Do not change Redis users; print the lines that an administrator has to add.",
)


@dataclass(frozen=True)
class _SiteConnection:
    """URLs and certificates with which the site reaches the servers."""

    site_url: str
    site_blob_url: str
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None

    def endpoints(self, deployment: Deployment) -> RedisEndpoints:
        """Fill in the operator's own URLs. Raises ConfigError, DataError."""
        url, blob_url = resolve_urls(deployment.url, deployment.blob_url, deployment.state_dir)
        tls = _tls(url, self.tls_ca, self.tls_cert, self.tls_key)
        url, blob_url = without_login(url), without_login(blob_url)
        shared = self.site_url if url == blob_url else ""
        return RedisEndpoints(self.site_url or url, self.site_blob_url or shared or blob_url, tls)


@dataclass(frozen=True)
class _Permissions:
    """Limits of the client, and permissions of the command."""

    force: bool
    max_examples: int
    open_server: bool
    no_acl: bool
    public_key: str


@click.command()
@click.argument("client", required=False)
@output_option("Credentials file, to be handed to the site.", required=False)
@collect(
    "allowed",
    _Permissions,
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option(
        "--max-examples",
        default=0,
        type=click.IntRange(min=0),
        help="Weigh an update as at most this many examples. Default: aggregation.max_examples.",
    ),
    click.option(
        "--public-key",
        default="",
        metavar="LINE",
        help="Enrol with a key that the site made: the line that `fl-queue keygen` printed there. Default: a key is "
        "made here, with which the operator could sign as the site.",
    ),
    click.option(
        "--open-server",
        is_flag=True,
        help="Enrol although a server accepts connections without a password.",
    ),
    _no_acl,
)
@collect(
    "connection",
    _SiteConnection,
    click.option(
        "--site-url",
        default="",
        help="URL by which the site reaches the control server. Default: the operator's.",
    ),
    click.option(
        "--site-blob-url",
        default="",
        help="URL by which the site reaches the data server. Default: the operator's.",
    ),
    file_option(
        "--tls-ca",
        help="CA certificate that signed the servers' certificates. Default: ssl_ca_certs of the URL.",
    ),
    file_option("--tls-cert", help="The site's own certificate, for mutual TLS."),
    file_option("--tls-key", help="Private key of --tls-cert."),
)
@click.option(
    "--sign-existing",
    is_flag=True,
    help="Without CLIENT: sign the clients that were enrolled before there was an operator's key.",
)
@yes_option
@json_option
@connection_options
@signing_option
def enroll(
    deployment: Deployment,
    client: str | None,
    output: Path | None,
    allowed: _Permissions,
    connection: _SiteConnection,
    sign_existing: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Create the credentials of CLIENT: Redis user, key, URLs.

    CLIENT is a client id, or `evaluator`. The site runs `fl-queue worker client --credentials FILE`.
    Enrolling again creates everything anew, and the old credentials stop working.

    The first enrolment also creates the operator's key, in this machine's state folder. It stays here;
    its public half is in each credentials file, so that a site can check the operator's signatures.

    Each enrolment is signed and kept in `enrolled/` of the state folder, which decides which clients
    are enrolled. Run this on the aggregator's machine, or copy `operator.key` and `enrolled/` there.
    """
    if sign_existing:
        if client or output:
            raise ConfigError("--sign-existing", "cannot be used with CLIENT or --output")
        _sign_existing(deployment, yes, as_json)
        return
    if client is None:
        raise ConfigError("CLIENT", "is missing; name the client")
    if output is None:
        raise ConfigError("--output", "is missing; name the file to write")
    _enroll(deployment, client, output, allowed, connection, as_json)


def _enroll(
    deployment: Deployment,
    client: str,
    output: Path,
    allowed: _Permissions,
    connection: _SiteConnection,
    as_json: bool,
) -> None:
    endpoints = connection.endpoints(deployment)
    credentials.check_place(output, allowed.force)
    made = enrolment.enroll(
        deployment.open(),
        client,
        endpoints,
        allowed.max_examples,
        not allowed.no_acl,
        allowed.open_server,
        allowed.public_key.strip(),
    )
    credentials.write(output, made.credentials, allowed.force)
    notes = _notes(deployment, made)
    if as_json:
        rules = made.rules if allowed.no_acl else {}
        print_json({"client": client, "file": str(output), "notes": notes, "rules": rules})
    elif allowed.no_acl:
        _print_rules(made)
    for note in notes:
        warn(f"Note: {note}.")
    warn(
        f"{output}: credentials of {client}, for Redis at {without_login(endpoints.url)}; hand it over "
        "by a private channel."
    )


def _print_rules(made: enrolment.NewEnrolment) -> None:
    for server, users in made.rules.items():
        print_line(f"# {server} server, a line of its aclfile each")
        for name, rules in users.items():
            print_line(f"user {name} {' '.join(rule for rule in rules if rule != 'reset')}")


def _sign_existing(deployment: Deployment, yes: bool, as_json: bool) -> None:
    store = deployment.open()
    found = enrolment.unsigned(store)
    for client, known in found.items():
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(known.enrolled_at))
        state = "revoked" if known.revoked_at else f"enrolled {since}"
        print_line(f"{client}: {state}, its key is {operator_key.fingerprint(known.key)}", as_json)
    if found and not yes:
        click.confirm(
            "Did you enrol each of them? From now on these keys are accepted, and no others",
            abort=True,
            err=True,
        )
    done = enrolment.sign_existing(store, found)
    print_result(
        as_json, {"clients": list(found), "done": done}, done or ["no client was unsigned"]
    )
    key = store.control.enrolments.pins.key
    if key is not None and found:
        line = f'Sites may add to their credentials files: operator_key = "{key.public}"'
        print_line(line, err=as_json)


@click.command()
@click.argument("client")
@_no_acl
@json_option
@connection_options
@signing_option
def revoke(deployment: Deployment, client: str, no_acl: bool, as_json: bool) -> None:
    """
    Remove CLIENT from the federation.

    From now on its updates are refused, and no round selects it or waits for it. Its jobs, Redis users
    and connections are removed. `fl-queue enroll` admits it again.
    """
    done = enrolment.revoke(deployment.open(), client, not no_acl)
    print_result(as_json, {"client": client, "done": done}, done)


def _notes(deployment: Deployment, made: enrolment.NewEnrolment) -> list[str]:
    """List the risks that the operator should know of, each once."""
    handed = (made.credentials.url, made.credentials.blob_url)
    risks = [risk for url in (deployment.url, deployment.blob_url) for risk in exposure.of_url(url)]
    risks += [risk for url in handed for risk in exposure.of_site_url(url)]
    return [*made.notes, *dict.fromkeys(f"{what}; {fix}" for what, fix in risks)]


def _tls(url: str, ca: Path | None, cert: Path | None, key: Path | None) -> dict[str, str]:
    if (cert is None) != (key is None):
        raise ConfigError("--tls-cert", "and --tls-key need each other; give both")
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
