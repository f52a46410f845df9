"""A federation whose sites have keys of their own and know each other's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fl_queue.client.site import WorkerSettings
from fl_queue.experiments import local_parties
from fl_queue.store import Store
from fl_queue.store.embedded import server_pair
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.federation import Federation
from tests.support.server_binaries import chosen_server

#: Overrides of a secure run with everything on.
SECURE = ("secure.enabled=true", "security.require_enrolment=true")


class SecureFederation(Federation):
    """Clients that are enrolled by the public half of a key of theirs, and have each other as peers."""

    def __init__(
        self,
        redis: EmbeddedRedis,
        folder: Path,
        clients: int,
        environment: Mapping[str, str] | None = None,
        forked: bool = False,
    ) -> None:
        names = [f"site-{number}" for number in range(1, clients + 1)]
        base = WorkerSettings(redis.url, redis.blob_url, redis.state_dir)
        with Store.open(redis.url, redis.blob_url, redis.state_dir) as store:
            self.sites = local_parties.enrol(store, base, names, folder)
        super().__init__(redis, folder, clients, environment, evaluator=False, forked=forked)

    def start(self, name: str, *options: str) -> None:
        site = self.sites.get(name)
        if site is not None:
            options = (*options, "--credentials", site.credentials, "--key", site.key)
            options = (*options, "--peers", site.peers)
        super().start(name, *options)


@contextmanager
def of_four(folder: Path, forked: bool = False) -> Iterator[SecureFederation]:
    """Four such sites on servers of their own. Args: ``forked``: as of ``Federation``."""
    with server_pair.start(folder / "state", server=chosen_server()) as redis:
        made = SecureFederation(redis, folder, 4, forked=forked)
        try:
            yield made
        finally:
            made.close()
