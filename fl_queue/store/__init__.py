"""Every Redis read and write. ``Store`` is the two servers: ``store.control`` and ``store.data``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fl_queue.common import collector, telemetry
from fl_queue.common.lazy import lazy

if TYPE_CHECKING:
    from fl_queue.protocol.state import (
        Glance,
        RoundState,
        RunState,
        parse_round_state,
        parse_run_state,
    )
    from fl_queue.store.admission import ADMITTED_S, MEMORY_SHARE, size_of
    from fl_queue.store.batching import ask_many, batches, keys_like, unlink_all
    from fl_queue.store.client_keys import count_keys, drop_keys
    from fl_queue.store.connection import OtherUsers, check, plain_client, resolve_urls
    from fl_queue.store.control import Control
    from fl_queue.store.control.clients import AWAITED, DATA_WAIT, PAUSED, data_wait
    from fl_queue.store.control.leases import LEASE_S
    from fl_queue.store.control.queues import Replacement
    from fl_queue.store.control.round_end import NewVersion, RoundEnd
    from fl_queue.store.control.server import as_text
    from fl_queue.store.control.workers import UNNAMED
    from fl_queue.store.data import Data, Doorbell
    from fl_queue.store.error_translation import REDIS_ERRORS, classify, in_words
    from fl_queue.store.facts_of_servers import UNKNOWN, ServerFacts, probe, server_facts
    from fl_queue.store.incarnation import Incarnation
    from fl_queue.store.login_refusals import is_login_refused, own_login
    from fl_queue.store.retries import error_log, fail_fast, outlast, stop_waiting, waits_for
    from fl_queue.store.roles import RedisClient, Store
    from fl_queue.store.timeouts import INTERACTIVE, UPLOADS, WORKERS, Timeouts

__all__ = [
    "ADMITTED_S",
    "AWAITED",
    "DATA_WAIT",
    "INTERACTIVE",
    "LEASE_S",
    "MEMORY_SHARE",
    "PAUSED",
    "REDIS_ERRORS",
    "UNKNOWN",
    "UNNAMED",
    "UPLOADS",
    "WORKERS",
    "Control",
    "Data",
    "Doorbell",
    "Glance",
    "Incarnation",
    "NewVersion",
    "OtherUsers",
    "RedisClient",
    "Replacement",
    "RoundEnd",
    "RoundState",
    "RunState",
    "ServerFacts",
    "Store",
    "Timeouts",
    "as_text",
    "ask_many",
    "batches",
    "check",
    "classify",
    "count_keys",
    "data_wait",
    "drop_keys",
    "error_log",
    "fail_fast",
    "in_words",
    "is_login_refused",
    "keys_like",
    "outlast",
    "own_login",
    "parse_round_state",
    "parse_run_state",
    "plain_client",
    "probe",
    "resolve_urls",
    "server_facts",
    "size_of",
    "stop_waiting",
    "unlink_all",
    "waits_for",
]

#: Module -> its public names.
_MODULES = {
    "fl_queue.store.admission": ("ADMITTED_S", "MEMORY_SHARE", "size_of"),
    "fl_queue.store.batching": ("ask_many", "batches", "keys_like", "unlink_all"),
    "fl_queue.store.client_keys": ("count_keys", "drop_keys"),
    "fl_queue.store.connection": ("OtherUsers", "check", "plain_client", "resolve_urls"),
    "fl_queue.store.control": ("Control",),
    "fl_queue.store.control.clients": ("AWAITED", "DATA_WAIT", "PAUSED", "data_wait"),
    "fl_queue.store.control.leases": ("LEASE_S",),
    "fl_queue.store.control.queues": ("Replacement",),
    "fl_queue.store.control.round_end": ("NewVersion", "RoundEnd"),
    "fl_queue.store.control.server": ("as_text",),
    "fl_queue.store.control.workers": ("UNNAMED",),
    "fl_queue.store.data": ("Data", "Doorbell"),
    "fl_queue.store.error_translation": ("REDIS_ERRORS", "classify", "in_words"),
    "fl_queue.store.incarnation": ("Incarnation",),
    "fl_queue.store.login_refusals": ("is_login_refused", "own_login"),
    "fl_queue.store.retries": ("error_log", "fail_fast", "outlast", "stop_waiting", "waits_for"),
    "fl_queue.store.roles": ("RedisClient", "Store"),
    "fl_queue.store.facts_of_servers": ("UNKNOWN", "ServerFacts", "probe", "server_facts"),
    "fl_queue.store.timeouts": ("INTERACTIVE", "UPLOADS", "WORKERS", "Timeouts"),
    "fl_queue.protocol.state": (
        "Glance",
        "RoundState",
        "RunState",
        "parse_round_state",
        "parse_run_state",
    ),
}

_public = lazy(
    __name__,
    {name: f"{module}:{name}" for module, names in _MODULES.items() for name in names},
)


def __getattr__(name: str) -> Any:
    # Lazy: redis-py is most of the start-up time of a command or worker, and what is here most of the rest.
    with collector.paused(), telemetry.left_out():
        return _public(name)
