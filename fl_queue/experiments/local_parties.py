"""Sites of one machine with keys of their own, enrolled and pinned by each other: for secure rounds without a fleet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.protocol import identifiers, key_file, signing
from fl_queue.protocol.parties import Parties
from fl_queue.store import Store, credentials

_HEAD = "# Signing key of a site of this machine (Ed25519).\n"
_READABLE = 0o644


def enrol(
    store: Store, base: WorkerSettings, clients: Iterable[str], folder: Path
) -> dict[str, WorkerSettings]:
    """
    Enrol clients by keys that are made for them, each with all of them as its peers.

    Args:
        store: Both servers, with this machine's state folder.
        base: Settings common to all sites; its URLs go into the credentials.
        folder: For keys, credentials and the list of parties.

    Returns:
        Client -> its settings.
    """
    sites, keys, peers = dict[str, WorkerSettings](), dict[str, str](), folder / "parties.toml"
    for client in clients:
        key = folder / f"{client}.key"
        keys[client] = signing.public_half(key_file.create(key, _HEAD))
        file = _credentials(store, base, client, folder, keys[client])
        sites[client] = replace(
            base, client=client, credentials=str(file), key=str(key), peers=str(peers)
        )
    with files.write_atomically(peers, mode=_READABLE) as written:
        written.write(Parties(keys).to_toml().encode())
    return sites


def enrol_evaluator(store: Store, base: WorkerSettings, folder: Path) -> WorkerSettings:
    """The settings of an enrolled evaluator. Args: as of ``enrol``."""
    return replace(base, credentials=str(_credentials(store, base, identifiers.EVALUATOR, folder)))


def _credentials(
    store: Store, base: WorkerSettings, client: str, folder: Path, public_key: str = ""
) -> Path:
    """Enrol a client; returns the file of its credentials."""
    file, place = folder / f"{client}.toml", RedisEndpoints(base.url, base.blob_url, {})
    made = enrolment.enroll(
        store, client, place, 0, use_acl=True, open_server=True, public_key=public_key
    )
    credentials.write(file, made.credentials)
    return file
