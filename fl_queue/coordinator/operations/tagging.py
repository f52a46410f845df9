"""
Tags: names of versions that an operator wants to keep.

They are a field of the run's hash, so a run and its tags are read, backed up and removed together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fl_queue.common.safe_json import dumps
from fl_queue.common.spelling import nearest
from fl_queue.coordinator.rounds.runs import check_is_model, current_config, find_run
from fl_queue.errors import ConfigError, RunStateError, UnknownVersion
from fl_queue.models import retention, selection
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol.events import Event, VersionTagged, VersionUntagged
from fl_queue.store import RunState, Store
from fl_queue.store.transactions import confirmed_changes
from fl_queue.store.transactions import runs as transactions

#: Letters first: a number is a version.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
#: Tags of a run: they are read with its state.
MOST = 100


def check_name(name: str) -> None:
    """Raise ConfigError unless ``name`` may be a tag."""
    if not _NAME.fullmatch(name) or name in selection.WORDS:
        raise ConfigError(
            "NAME",
            f"{name!r} is not a tag; use a letter, then letters, digits, dots and dashes, at most 63, and none of "
            f"{', '.join(selection.WORDS)}",
        )


def tag(store: Store, run: str, version: str, name: str) -> int:
    """
    Name a version, which is kept from then on; a tag that is there is moved.

    Args:
        run: Name or id.
        version: A number, a tag, ``newest`` or ``best``.

    Returns:
        The number of the version.

    Raises:
        ConfigError: The name cannot be one.
        RunStateError: There is no such version, or there are too many tags.
        UnknownVersion: The version does not exist, or has been pruned.
    """
    check_name(name)
    state = find_run(store, run)
    config = current_config(store, state.run_id)
    if version == "best":
        check_is_model(store, state)
    number = selection.chosen_version(store, state, config, version, best=False)
    versions = store.control.versions.all(state.run_id)
    if number not in versions:
        raise UnknownVersion(state.name, number, f"does not exist (versions: 0 to {max(versions)})")
    assert store.state_dir is not None  # A command's connection has one.
    models = ModelStore(store, state.run_id, config.redis.chunk_bytes, store.state_dir)
    pruned = f"has been pruned (model.keep_versions = {config.model.keep_versions})"
    had, had_state = models.is_there(number, with_state=False), models.is_there(number)
    if number not in retention.kept_versions(store, state, config) and not had:
        raise UnknownVersion(state.name, number, pruned)

    def add(tags: Mapping[str, int]) -> dict[str, int]:
        if len(tags) >= MOST and name not in tags:
            raise RunStateError(state.name, f"has {MOST} tags; remove one with --remove")
        return {**tags, name: number}

    _change(store, state.run_id, add, VersionTagged(version=number, name=name))
    # Retention that had read the tags before may have removed it; from now on it does not. What this machine
    # did not find before, another one may have.
    if had and not models.is_there(number, with_state=had_state):
        _take_back(store, state, name, number)
        raise UnknownVersion(state.name, number, pruned)
    return number


def _take_back(store: Store, before: RunState, name: str, number: int) -> None:
    """Put a tag back to what it was in ``before``, unless it has been moved again."""
    old = before.tags.get(name)

    def back(tags: Mapping[str, int]) -> dict[str, int]:
        if tags.get(name) != number:
            return dict(tags)
        others = {each: version for each, version in tags.items() if each != name}
        return others if old is None else {**tags, name: old}

    event: Event = VersionUntagged(version=number, name=name)
    if old is not None:
        event = VersionTagged(version=old, name=name)
    _change(store, before.run_id, back, event)


def untag(store: Store, run: str, name: str) -> int:
    """
    Remove a tag; its version is kept as others are.

    Returns:
        The version that had it.

    Raises:
        RunStateError: There is no such tag.
    """
    state = find_run(store, run)
    number = state.tags.get(name)
    if number is None:
        there = f" (tags: {', '.join(sorted(state.tags))})" if state.tags else ""
        raise RunStateError(
            state.name, f"has no tag {name!r}{nearest(name, sorted(state.tags))}{there}"
        )

    def remove(tags: Mapping[str, int]) -> dict[str, int]:
        return {each: version for each, version in tags.items() if each != name}

    _change(store, state.run_id, remove, VersionUntagged(version=number, name=name))
    return number


def _change(
    store: Store, run: str, change: Callable[[Mapping[str, int]], Mapping[str, int]], event: Event
) -> None:
    by = confirmed_changes.new_token()
    while True:
        state = find_run(store, run)
        tags = change(state.tags)
        if tags == state.tags:
            return
        if transactions.set_tags(store, state, dumps(tags), event, by):
            return
