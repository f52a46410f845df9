"""``fl-queue keygen`` and ``fl-queue parties``: keys that sites make, and the list of them that sites compare."""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli.options import (
    Deployment,
    connection_options,
    json_option,
    output_option,
    signing_option,
)
from fl_queue.cli.output import print_json, print_line, warn
from fl_queue.common import files
from fl_queue.common.state_folder import may_be_exchanged
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers, key_file, operator_key, signing
from fl_queue.protocol.parties import Parties
from fl_queue.reporting import rich_console

_READABLE = 0o644
_HEAD = (
    "# A site's secret signing key of fl-queue (Ed25519), written by `fl-queue keygen`. It never leaves the site:\n"
    "# keep a copy that no other account can read.\n"
)


@click.command()
@output_option("Key file to write, for its owner alone.")
@json_option
def keygen(output: Path, as_json: bool) -> None:
    """
    Make this site's signing key, and print its public half.

    The operator enrols the site with the printed line (`fl-queue enroll CLIENT --public-key LINE`), and so never has
    a key with which to sign as the site. The worker is started with --key FILE. A file that is there stays: a site that
    loses its key makes another one, and is enrolled anew.
    """
    if may_be_exchanged(output.absolute().parent):
        raise ConfigError(
            "--output",
            f"others of this machine may write to {output.absolute().parent}; name a file in a folder of your own",
        )
    try:
        public = signing.public_half(key_file.create(output, _HEAD))
    except FileExistsError as exc:
        raise ConfigError(
            "--output", f"{output} is there and stays as it is; name another file"
        ) from exc
    except OSError as exc:
        raise ConfigError("--output", f"{output} cannot be written: {exc.strerror or exc}") from exc
    fingerprint = operator_key.fingerprint(public)
    if as_json:
        print_json({"file": str(output), "public_key": public, "fingerprint": fingerprint})
    else:
        print_line(public)
        warn(
            f"{output}: the secret key, which stays here. Give the line above to the operator, and the fingerprint "
            f"{fingerprint} to the other parties, by telephone or in person."
        )


@click.command()
@output_option("File to write, for --peers of the sites.", required=False)
@json_option
@connection_options
@signing_option
def parties(deployment: Deployment, output: Path | None, as_json: bool) -> None:
    """
    List enrolled clients with public keys and fingerprints.

    Each site compares the fingerprints with the other parties, by telephone or in person, and starts its worker
    with `--peers FILE`. From then on it shares a secure round with these clients and keys only.
    """
    enrolled = deployment.open_control().control.enrolments.all()
    found = Parties(
        {
            client: known.key
            for client, known in enrolled.items()
            if not known.revoked_at and client != identifiers.EVALUATOR
        }
    )
    if not found.keys:
        raise ConfigError("parties", "no client is enrolled yet; enrol each with `fl-queue enroll`")
    if output is not None:
        _write(output, found)
    rows = [
        {"client": client, "fingerprint": operator_key.fingerprint(key), "key": key}
        for client, key in found.keys.items()
    ]
    if as_json:
        print_json(rows)
        return
    table = rich_console.table("Client", "Fingerprint", "Public key")
    for row in rows:
        table.add_row(*row.values())
    rich_console.console().print(table)
    if output is not None:
        warn(
            f"{output}: {len(rows)} parties; each site compares the fingerprints before it uses the file."
        )


def _write(path: Path, found: Parties) -> None:
    """Write the file: others may read it, as its keys are public, and only its owner may change it. Raises ConfigError."""
    try:
        with files.write_atomically(path, mode=_READABLE) as file:
            file.write(found.to_toml().encode())
    except OSError as exc:
        raise ConfigError("--output", f"{path} cannot be written: {exc.strerror or exc}") from exc
