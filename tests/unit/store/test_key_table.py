"""The table of keys, and what is derived from it: documents, patterns of a run, the content of a backup."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from fl_queue.protocol.events import RunRestored
from fl_queue.store import Store, key_table
from fl_queue.store.key_table import KEYS, Key
from fl_queue.store.transactions import backups
from fl_queue.store.transactions.backups import RestoredRun
from scripts import keys_reference
from tests.support.key_rows import rows_of

ROOT = Path(__file__).parents[3]
RUN = "lawful-1a2b3c"
VALUES = {
    "<run>": RUN,
    "<n>": "12",
    "<i>": "3",
    "<fence>": "7",
    "<digest>": "0af3",
    "<id>": "hospital-a",
    "<client>": "hospital-a",
    "<name>": "hospital-a_0",
}


def example(key: Key) -> str:
    name = key.pattern
    for placeholder, value in VALUES.items():
        name = name.replace(placeholder, value)
    return name


def test_the_document_has_the_tables() -> None:
    text = (ROOT / "docs/reference/redis.md").read_text()

    assert keys_reference.replaced(text) == text, "run `make docs`"
    assert [key.pattern for key in KEYS if f"| `{key.pattern}` |" not in text] == []


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.pattern)
def test_a_name_matches_its_row_alone(key: Key) -> None:
    assert rows_of(example(key)) == [key]


@pytest.mark.parametrize("key", [key for key in KEYS if "<run>" in key.pattern])
def test_deletion_removes_every_key_of_a_run_and_none_of_another(key: Key) -> None:
    def is_removed(name: str) -> bool:
        patterns = key_table.patterns_of_run(RUN, key.server)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    name = example(key)
    # The run's hash is removed by its name, before all others.
    assert is_removed(name) == (key.pattern != "flq:{<run>}")
    assert not is_removed(name.replace(RUN, "lawful-9f8e7d"))


def test_a_restored_run_has_the_keys_that_a_backup_holds(store: Store) -> None:
    field = {"1": "{}"}
    event = RunRestored(version=1, of="lawful-000000")
    restored = RestoredRun(
        RUN, "lawful", ["lawful-000000"], event, {"state": "completed"},
        "[]", "{}", field, ["{}"], {"1": 1}, {"hospital-a": "{}"}, field,
    )  # fmt: skip
    before = set(store.control.redis.keys())

    assert backups.restore_run(store, restored)
    written = {key.decode() for key in set(store.control.redis.keys()) - before}
    held = {key.pattern for key in KEYS if key.in_backup}
    beside = {"flq:runs", "flq:{restored}", "flq:{<run>}:events"}
    assert {row.pattern for name in written for row in rows_of(name)} == held | beside
