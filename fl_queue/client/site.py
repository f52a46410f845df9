"""
Settings that one worker's machine decides for itself: options of ``fl-queue worker``, passed on as ``FLQ_SITE_*``.

Nothing here comes from a job or from Redis.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_queue.common import memory
from fl_queue.errors import ConfigError
from fl_queue.protocol import key_file, operator_key, signing
from fl_queue.store.credentials import Credentials
from fl_queue.store.credentials import read as read_credentials
from fl_queue.store.embedded import server_pair
from fl_queue.store.timeouts import WORKERS, Timeouts

if TYPE_CHECKING:
    from fl_queue.config.run_config import RunConfig
    from fl_queue.protocol.parties import Parties
    from fl_queue.store import OtherUsers, Store

#: Cells of published tables are suppressed below about this size; a share of a partition has as many.
MIN_EXAMPLES = 10
#: With two clients, each would learn the other's update from their sum.
MIN_COHORT = 3


@dataclass(frozen=True)
class WorkerSettings:
    """
    Options of one worker process.

    Args:
        url, blob_url: The two Redis roles; empty: the private servers of the state folder.
        state_dir: Outbox, checkpoints.
        client: Client id; empty for the other roles.
        data_dir: Folder of this site's data; wins over the config's ``data.dir``.
        data_from_config: Whether ``data.dir`` of a config may name the folder instead.
        allow: Own tasks (``module:name``) this site lets in.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        devices: Those that train one model together, each in a process of its own; empty: ``device`` alone.
        threads: CPU threads of a training job.
        loader_workers: Processes that read samples beside it.
        worker: Name of the RQ worker; new for each process.
        credentials: File of ``fl-queue enroll``; wins over the URLs.
        strategy_allow: Own strategies (``module:Class``) this aggregator lets in.
        token: Holds this worker's leases; a restarted worker of the same supervisor keeps it.
        quiet_hours: Parts of the day in which it is paused, ``08:00-18:00``, by this machine's clock.
        max_examples: Most training samples a round may use; 0: all.
        min_examples: Minimum of training samples, and of samples in a statistic that is sent.
        min_batch: Minimum of samples in a training step, and in an update; 0: see
            ``min_step_examples``.
        approve: Whether updates and evaluations leave only after a decision at this site.
        pins: Digests of the only configs that it serves; empty: any.
        operator_key: File of the operator's key, on the operator's side; empty: where it is by default.
        trainers: Training processes that are kept, one for each run.
        trainer_jobs: Jobs that one of them does; 0: any number.
        compiled: Whether the passes of its models are compiled.
        key: File of the site's own signing key (``fl-queue keygen``); empty: the credentials have it.
        peers: File of the only clients that it shares a secure round with; empty: any.
        require_secure: Whether it takes part in secure rounds only.
        min_cohort: Fewest clients with which it shares a secure round.
        policy: File of the rules for its tables (``client/policy.py``); empty: the rules without a file.
        trainer_bytes: Memory that they may keep together, bytes; 0: see ``most_trainer_bytes``.
    """

    url: str = ""
    blob_url: str = ""
    state_dir: Path = Path()
    client: str = ""
    data_dir: str = ""
    allow: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int = 1
    worker: str = ""
    token: str = ""
    credentials: str = ""
    strategy_allow: tuple[str, ...] = ()
    loader_workers: int = 0
    quiet_hours: tuple[str, ...] = ()
    max_examples: int = 0
    min_examples: int = MIN_EXAMPLES
    min_batch: int = 0
    approve: bool = False
    pins: tuple[str, ...] = ()
    data_from_config: bool = False
    operator_key: str = ""
    trainers: int = 2
    trainer_jobs: int = 0
    trainer_bytes: int = 0
    devices: tuple[str, ...] = ()
    policy: str = ""
    compiled: bool = False
    key: str = ""
    peers: str = ""
    require_secure: bool = False
    min_cohort: int = MIN_COHORT

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> WorkerSettings:
        """The site of this process, from the environment that its parent has set."""
        state_dir = environ.get("FLQ_SITE_STATE_DIR")
        return cls(
            url=environ.get("FLQ_REDIS_URL", ""),
            blob_url=environ.get("FLQ_REDIS_BLOB_URL", ""),
            state_dir=Path(state_dir) if state_dir else server_pair.default_state_dir(environ),
            client=environ.get("FLQ_SITE_CLIENT", ""),
            data_dir=environ.get("FLQ_SITE_DATA", ""),
            allow=_listed(environ, "FLQ_SITE_ALLOW"),
            strategy_allow=_listed(environ, "FLQ_SITE_STRATEGY_ALLOW"),
            device=environ.get("FLQ_SITE_DEVICE", "cpu"),
            threads=int(environ.get("FLQ_SITE_THREADS", "1")),
            loader_workers=int(environ.get("FLQ_SITE_LOADER_WORKERS", "0")),
            worker=environ.get("FLQ_SITE_WORKER", "")
            or f"{environ.get('FLQ_SITE_CLIENT', '')}_{secrets.token_hex(4)}",
            token=environ.get("FLQ_SITE_TOKEN", "") or secrets.token_hex(8),
            credentials=environ.get("FLQ_SITE_CREDENTIALS", ""),
            quiet_hours=_listed(environ, "FLQ_SITE_QUIET_HOURS"),
            max_examples=int(environ.get("FLQ_SITE_MAX_EXAMPLES", "0")),
            min_examples=int(environ.get("FLQ_SITE_MIN_EXAMPLES", MIN_EXAMPLES)),
            min_batch=int(environ.get("FLQ_SITE_MIN_BATCH", "0")),
            approve=environ.get("FLQ_SITE_APPROVE", "") == "1",
            pins=_listed(environ, "FLQ_SITE_PIN_CONFIG"),
            data_from_config=environ.get("FLQ_SITE_DATA_FROM_CONFIG", "") == "1",
            operator_key=environ.get(operator_key.VARIABLE, ""),
            trainers=int(environ.get("FLQ_SITE_TRAINERS", "2")),
            trainer_jobs=int(environ.get("FLQ_SITE_TRAINER_JOBS", "0")),
            trainer_bytes=int(environ.get("FLQ_SITE_TRAINER_BYTES", "0")),
            devices=_listed(environ, "FLQ_SITE_DEVICES"),
            policy=environ.get("FLQ_SITE_POLICY", ""),
            compiled=environ.get("FLQ_SITE_COMPILE", "") == "1",
            key=environ.get("FLQ_SITE_KEY", ""),
            peers=environ.get("FLQ_SITE_PEERS", ""),
            require_secure=environ.get("FLQ_SITE_REQUIRE_SECURE", "") == "1",
            min_cohort=int(environ.get("FLQ_SITE_MIN_COHORT", MIN_COHORT)),
        )

    def to_environ(self) -> dict[str, str]:
        """The variables from which ``from_environ`` makes this site again."""
        return {
            "FLQ_REDIS_URL": self.url,
            "FLQ_REDIS_BLOB_URL": self.blob_url,
            "FLQ_SITE_STATE_DIR": str(self.state_dir),
            "FLQ_SITE_CLIENT": self.client,
            "FLQ_SITE_DATA": self.data_dir,
            "FLQ_SITE_ALLOW": ",".join(self.allow),
            "FLQ_SITE_STRATEGY_ALLOW": ",".join(self.strategy_allow),
            "FLQ_SITE_DEVICE": self.device,
            "FLQ_SITE_THREADS": str(self.threads),
            "FLQ_SITE_LOADER_WORKERS": str(self.loader_workers),
            "FLQ_SITE_WORKER": self.worker,
            "FLQ_SITE_TOKEN": self.token,
            "FLQ_SITE_CREDENTIALS": self.credentials,
            "FLQ_SITE_QUIET_HOURS": ",".join(self.quiet_hours),
            "FLQ_SITE_MAX_EXAMPLES": str(self.max_examples),
            "FLQ_SITE_MIN_EXAMPLES": str(self.min_examples),
            "FLQ_SITE_MIN_BATCH": str(self.min_batch),
            "FLQ_SITE_APPROVE": "1" if self.approve else "",
            "FLQ_SITE_PIN_CONFIG": ",".join(self.pins),
            "FLQ_SITE_DATA_FROM_CONFIG": "1" if self.data_from_config else "",
            "FLQ_SITE_TRAINERS": str(self.trainers),
            "FLQ_SITE_TRAINER_JOBS": str(self.trainer_jobs),
            "FLQ_SITE_TRAINER_BYTES": str(self.trainer_bytes),
            "FLQ_SITE_DEVICES": ",".join(self.devices),
            "FLQ_SITE_POLICY": self.policy,
            "FLQ_SITE_COMPILE": "1" if self.compiled else "",
            "FLQ_SITE_KEY": self.key,
            "FLQ_SITE_PEERS": self.peers,
            "FLQ_SITE_REQUIRE_SECURE": "1" if self.require_secure else "",
            "FLQ_SITE_MIN_COHORT": str(self.min_cohort),
            # Not named: what the environment names stays.
            **({operator_key.VARIABLE: self.operator_key} if self.operator_key else {}),
        }

    def data_folder(self, config: RunConfig) -> str:
        """
        The folder that a run's task reads here; empty: there is none.

        Raises:
            ConfigError: Only the config names one, and this site does not follow it.
        """
        if self.data_dir or not config.data.dir or self.data_from_config:
            return self.data_dir or str(config.data.dir)
        raise ConfigError(
            "data.dir",
            "this site reads no folder that a config names; start its worker with --data FOLDER, or "
            "with --data-from-config",
            public=True,
        )

    @property
    def min_step_examples(self) -> int:
        """
        Minimum of examples in a training step, and in an update.

        It is lower than a large ``min_examples``, as usual batches have 10 to 64.
        """
        return self.min_batch or min(self.min_examples, MIN_EXAMPLES)

    @property
    def most_trainer_bytes(self) -> int:
        """Memory that the training processes may keep, bytes: half of what there is, if not set; 0: any."""
        return self.trainer_bytes or memory.usable_bytes() // 2

    def known_folder(self, config: RunConfig) -> str:
        """The same, for what may do without: empty where ``data_folder`` would raise."""
        follows = self.data_from_config and not self.data_dir
        return str(config.data.dir) if follows else self.data_dir

    @property
    def outbox(self) -> Path:
        """Folder of finished updates."""
        return self.state_dir / "outbox"

    @property
    def cache(self) -> Path:
        """Folder of fetched models."""
        return self.state_dir / "cache"

    @cached_property
    def secrets(self) -> Credentials | None:
        """
        Contents of the credentials file; None without one.

        Raises:
            ConfigError: It cannot be read, or is not private.
        """
        return read_credentials(Path(self.credentials)) if self.credentials else None

    def urls(self) -> tuple[str, str]:
        """
        (url, blob_url) of both Redis roles, with the login that is used.

        Raises:
            ConfigError: The credentials cannot be used.
            StoreUnavailable: No URL is given and no private servers run.
        """
        if self.secrets is not None:
            return self.secrets.urls()
        from fl_queue.store import resolve_urls

        return resolve_urls(self.url, self.blob_url, self.state_dir)

    def other_users(self) -> OtherUsers:
        """The URLs as the site's further users, on a server without selectors; see ``acl``."""
        return self.secrets.other_users() if self.secrets is not None else {}

    @cached_property
    def signing_key(self) -> str:
        """
        The site's secret signing key, base64: of its own file, else of the credentials; empty without credentials.

        Raises:
            ConfigError: A file cannot be read or is not private, or the key is not the one that was enrolled.
        """
        found = self.secrets
        if found is None:
            return ""
        if not self.key:
            if not found.signing_key:
                raise ConfigError(
                    "--key",
                    f"is missing: {found.client} was enrolled with a key of its own; name its file",
                )
            return found.signing_key
        if found.signing_key:
            raise ConfigError(
                "--key",
                f"{self.credentials} has a key that the operator made; enrol {found.client} with --public-key",
            )
        secret = key_file.read(Path(self.key), "--key", "holds no key of `fl-queue keygen`")
        if signing.public_half(secret) != found.public_key:
            raise ConfigError(
                "--key", f"{self.key} is not the key with which {found.client} was enrolled"
            )
        return secret

    @cached_property
    def pinned_peers(self) -> Parties | None:
        """
        The only clients that the site shares a secure round with; None: any.

        Raises:
            ConfigError: Their file cannot be used.
        """
        from fl_queue.protocol import parties

        return parties.read(Path(self.peers)) if self.peers else None

    def seal(self, element: bytes) -> bytes:
        """Sign an element with this site's key; without credentials it stays as it is. Raises ConfigError."""
        if self.secrets is None:
            return element
        return signing.seal(element, self.secrets.client, self.signing_key)

    @property
    def client_states(self) -> Path:
        """Folder of what clients keep from one round to the next."""
        return self.state_dir / "client-state"

    @property
    def fits(self) -> Path:
        """Folder of the notes of fits that are answered here."""
        return self.state_dir / "fits"

    def connect(self) -> Store:
        """
        Both Redis roles, not checked: for a job, whose worker has seen that they are fit.

        Raises:
            StoreUnavailable: No URL is given and no private servers run.
        """
        from fl_queue.store import Store

        others, key = self.other_users(), self._key_file
        return Store(*self.urls(), others, state_dir=self.state_dir, operator_key=key)

    def connected(self) -> Store:
        """
        The same for one job after the other: with the connections of the last one, unless the servers or the login differ.

        Raises:
            StoreUnavailable: No URL is given and no private servers run.
        """
        key = (
            os.getpid(),
            self.urls(),
            repr(self.other_users()),
            self.state_dir,
            self.operator_key,
        )
        if _kept.get("key") != key:
            if (old := _kept.get("store")) is not None and _kept["key"][0] == key[0]:
                old.close()
            _kept.update(key=key, store=self.connect())
        store: Store = _kept["store"]
        return store

    def store(self, timeouts: Timeouts = WORKERS, needs_data: bool = True) -> Store:
        """
        Both Redis roles, checked. Args: as of ``Store.open``.

        Raises:
            StoreUnavailable: Not reachable, or too old.
        """
        from fl_queue.store import Store

        users = self.other_users()
        key = self._key_file
        return Store.open(*self.urls(), self.state_dir, users, timeouts, needs_data, key)

    @property
    def _key_file(self) -> Path | None:
        return Path(self.operator_key) if self.operator_key else None


#: Key and store of this process's last job.
_kept: dict[str, Any] = {}


def _listed(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(item for item in environ.get(name, "").split(",") if item)
