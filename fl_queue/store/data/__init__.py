"""
The data server: results lists, taken lists, partial sums and chunks.

It may vanish and come back empty: everything here can be pushed again from an outbox or a
checkpoint. ``identity`` changes when that has happened.
"""

from __future__ import annotations

import secrets

from fl_queue.store.admission import Admission
from fl_queue.store.connection import Servers, identity_keys, script
from fl_queue.store.data.chunks import Chunks
from fl_queue.store.data.partial_sum import PartialSum
from fl_queue.store.data.results import Doorbell, Results
from fl_queue.store.data.secure_records import SecureRecords
from fl_queue.store.data.taken import TakenLists

__all__ = ["Data", "Doorbell"]


class Data:
    """
    Every read and write of the data server, by subject.

    Args:
        servers: The connections to both servers.
    """

    def __init__(self, servers: Servers) -> None:
        self.redis = servers.data
        self.admission = Admission(servers.data)
        self.chunks = Chunks(servers.data)
        self.partial_sum = PartialSum(servers.data)
        self.results = Results(servers)
        self.secure_records = SecureRecords(servers.data)
        self.taken = TakenLists(servers)
        self._identity = script(servers.data, "identity")

    def identity(self) -> str:
        """
        Identity of the server process and of its content; of all nodes, if it is a cluster.

        Changes when one restarts (it may have lost data) and when it is flushed.
        """
        return ",".join(
            self._identity(keys=[key], args=[secrets.token_hex(8)]).decode()
            for key in identity_keys(self.redis)
        )

    def ping(self) -> None:
        """Raises StoreUnavailable when the data server does not answer."""
        self.redis.ping()

    def probe(self) -> None:
        """Raises StoreUnavailable when the data server takes no writes now; memory is not asked for."""
        for key in identity_keys(self.redis):
            # A write that changes nothing: these keys never expire.
            self.redis.persist(key)
