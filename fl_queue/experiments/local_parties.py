"""Sites of one machine with keys of their own, enrolled and pinned by each other: for secure rounds without a fleet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.enrolment import RedisEndpoints
from fl_queue.protocol import key_file, signing
from fl_queue.protocol.parties import Parties
from fl_queue.store import Store, credentials

_HEAD = "# Signing key of a site of this machine (Ed25519).\n"
_READABLE = 0o644


def enrol(
    store: Store, base: WorkerSettings, clients: Iterable[str], folder: Path
) -> dict[str, WorkerSettings]:
    """
    Enrol clients by keys that are made for them, each with all others as its peers.

    Args:
        store: Both servers, with this machine's state folder.
        base: Settings common to all sites; its URLs go into the credentials.
        folder: For keys, credentials and the list of parties.

    Returns:
        Client -> its settings.
    """
    place, keys = RedisEndpoints(base.url, base.blob_url, {}), dict[str, str]()
    sites: dict[str, WorkerSettings] = {}
    peers = folder / "parties.toml"
    for client in clients:
        key, file = folder / f"{client}.key", folder / f"{client}.toml"
        keys[client] = signing.public_half(key_file.create(key, _HEAD))
        made = enrolment.enroll(
            store, client, place, 0, use_acl=True, open_server=True, public_key=keys[client]
        )
        credentials.write(file, made.credentials)
        sites[client] = replace(
            base, client=client, credentials=str(file), key=str(key), peers=str(peers)
        )
    with files.write_atomically(peers, mode=_READABLE) as written:
        written.write(Parties(keys).to_toml().encode())
    return sites
