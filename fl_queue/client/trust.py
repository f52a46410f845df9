"""
Trust of a site in Redis: with the operator's public key in its credentials, it accepts only signed rounds and configs.

Everything is checked before any of it is used: the round, the config, the model it starts from and who its
clients are. The site also remembers, on its own disk, the newest round of each run that it took part in, and
refuses older ones. Independent of signatures, ``--pin-config`` names the only configs that it serves.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.common.safe_json import dumps
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import RoundRefused
from fl_queue.protocol import identifiers, statements
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Purpose, digest_of
from fl_queue.protocol.statements import is_segment_signed
from fl_queue.secure.policy import against_plain_round
from fl_queue.secure.vault import Vault
from fl_queue.store import RoundState, RunState

log = logging.getLogger(__name__)

#: Runs that a site remembers; of more, those it took part in longest ago are forgotten.
REMEMBERED = 4096


#: What an operator has forgotten where nothing is signed.
NEEDED = "operator.key is needed where runs are begun, and in the aggregator's state folder"


@dataclass(frozen=True)
class Question:
    """
    Round and run of a site's job, as read from Redis.

    Args:
        who: Client id, or ``evaluator``.
        purpose: What the job's function does.
        state: Read after ``round``: its population has all clients of the round's.
        segments: The run's config, all segments.
        manifest: The run's; None before version 0.
    """

    who: str
    purpose: Purpose
    state: RunState
    round: RoundState
    segments: Sequence[Mapping[str, Any]]
    manifest: Manifest | None


def round_config(site: WorkerSettings, asked: Question) -> RunConfig:
    """
    The config of a round that this site may take part in; the round is remembered.

    Raises:
        Refused: It may not.
    """
    segment = _segment(asked.segments, asked.round.segment)
    statement = _checked(site, asked, segment)
    _check_pin(site, segment)
    _check_secure(site, asked)
    _check_not_in_clear(site, asked)
    if statement is not None:
        _remember(site, asked)
    return _parsed(dumps(segment["config"]))


def segment_config(
    site: WorkerSettings, state: RunState, segments: Sequence[Mapping[str, Any]], number: int
) -> RunConfig:
    """
    The config that a question outside of rounds is about.

    Raises:
        Refused: The operator has not signed it, or this site has not pinned it.
    """
    segment = _segment(segments, number)
    public = operator_key(site)
    if public and not is_segment_signed(state.run_id, state.name, number, segment, public):
        raise RoundRefused(
            f"the config of run {state.run_id} is not signed with the operator's key, or was changed"
        )
    _check_pin(site, segment)
    return _parsed(dumps(segment["config"]))


@lru_cache(maxsize=8)
def _parsed(config: str) -> RunConfig:
    """A config; each round of a run brings the same. A worker runs no code of a task that could change it."""
    return RunConfig.from_dict(json.loads(config))


def operator_key(site: WorkerSettings) -> str:
    """Public half of the operator's key; empty: this site cannot check what it is sent."""
    return site.secrets.operator_key if site.secrets is not None else ""


def _segment(segments: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any]:
    try:
        found = segments[number]
        if number >= 0 and isinstance(found["config"], dict):
            return found
    except (LookupError, TypeError):
        pass
    raise RoundRefused(f"the run has no config of segment {number}")


def _checked(
    site: WorkerSettings, asked: Question, segment: Mapping[str, Any]
) -> statements.Statement | None:
    """The operator's statement on a round, which equals the round in Redis; None where no key is known."""
    public, number = operator_key(site), asked.round.number
    if not public:
        return None
    if not asked.round.signed:
        raise RoundRefused(f"round {number} is not signed by the operator; {NEEDED}")
    statement = statements.opened(asked.round.signed, public)
    if statement is None:
        raise RoundRefused(
            f"round {number} is signed with another key than the operator's, or changed"
        )
    config = digest_of(segment["config"])
    if name := statements.differing(statement, asked.state, asked.round, config, asked.manifest):
        raise RoundRefused(f"{name} of round {number} is not what the operator signed")
    if statement["purpose"] != asked.purpose:
        raise RoundRefused(f"round {number} is signed for another job: {statement['purpose']}")
    if asked.who not in asked.round.cohort:
        raise RoundRefused(f"round {number} is signed for other clients")
    if older := _older_than(site, asked):
        raise RoundRefused(
            f"round {number} is older than round {older}, which this site took part in"
        )
    return statement


def _check_pin(site: WorkerSettings, segment: Mapping[str, Any]) -> None:
    config = digest_of(segment["config"])
    if site.pins and config not in site.pins:
        raise RoundRefused(
            f"config {config} is none that this site has pinned (--pin-config); "
            "its owner decides, and starts the worker again with it",
            lasts=True,
        )


def _check_secure(site: WorkerSettings, asked: Question) -> None:
    """Refuse a round whose response would leave this site in clear, if the site has secure rounds only."""
    if not site.require_secure or _is_masked(asked):
        return
    if why := against_plain_round(asked.round.number, asked.purpose):
        raise RoundRefused(why, lasts=True)


def _check_not_in_clear(site: WorkerSettings, asked: Question) -> None:
    """Refuse to answer in clear a round for which this site has made keys, whatever Redis has of it by now."""
    run, number = asked.state.run_id, asked.round.number
    if not _is_masked(asked) and Vault(site.state_dir, asked.who).has_round(run, number):
        raise RoundRefused(f"round {number} was a secure one when this site made its keys")


def _is_masked(asked: Question) -> bool:
    """Whether the response is masked: a job that asks for anything else is answered in clear, in any round."""
    return asked.purpose == Purpose.train and asked.round.secure is not None


# What a site remembers


def _file(site: WorkerSettings, asked: Question) -> Path | None:
    run = asked.state.run_id
    if not (identifiers.is_run_id(run) and identifiers.is_name(asked.who)):
        return None
    return site.state_dir / "rounds" / asked.who / f"{run}.json"


def _older_than(site: WorkerSettings, asked: Question) -> int:
    """The newest round that this site took part in, if a round is older; 0: it is not."""
    newest, opened_at = _newest(site, asked)
    # A control server that lost its last writes opens a round of a lower number again, later.
    is_older = asked.round.number < newest and asked.round.opened_at < opened_at
    return newest if is_older else 0


def _newest(site: WorkerSettings, asked: Question) -> tuple[int, float]:
    path = _file(site, asked)
    try:
        raw = json.loads(path.read_bytes()) if path is not None else {}
        return int(raw["round"]), float(raw["opened_at"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0, 0.0


def _remember(site: WorkerSettings, asked: Question) -> None:
    """
    Note that this site takes part in a round.

    Raises:
        Refused: It cannot be written: a site that forgets could be asked for an old round.
    """
    path = _file(site, asked)
    newest, opened_at = _newest(site, asked)
    now = max(newest, asked.round.number), max(opened_at, asked.round.opened_at)
    if path is None or now == (newest, opened_at):
        return
    noted = dumps({"round": now[0], "opened_at": now[1]}).encode()
    try:
        is_new = not path.exists()
        with files.write_atomically(path) as file:
            file.write(noted)
        if is_new:
            _forget_oldest(path.parent)
    except OSError as exc:
        raise RoundRefused(
            f"what this site takes part in cannot be noted: {exc.strerror or type(exc).__name__}"
        ) from exc


def _forget_oldest(folder: Path) -> None:
    noted = list(folder.glob("*.json"))
    if len(noted) > REMEMBERED:
        noted.sort(key=lambda path: path.stat().st_mtime)
        for path in noted[:-REMEMBERED]:
            path.unlink(missing_ok=True)
