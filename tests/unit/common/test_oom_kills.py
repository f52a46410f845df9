"""The message for a killed process names memory only where the kernel's counters show it, or cannot be read."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fl_queue.common import oom_kills

CGROUP, MACHINE = "/sys/fs/cgroup/x/memory.events", "/proc/vmstat"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({CGROUP: 3, MACHINE: 3}, {CGROUP: 4, MACHINE: 4}, "signal 9: out of memory (oom_kill of"),
        ({MACHINE: 3}, {MACHINE: 4}, "signal 9: out of memory? (oom_kill of its machine rose)"),
        ({}, {}, "signal 9: out of memory? (no counter"),
        (
            {CGROUP: 3, MACHINE: 3},
            {CGROUP: 3, MACHINE: 3},
            "signal 9; the kernel has ended nothing",
        ),
    ],
)
def test_memory_is_named_as_far_as_it_is_known(
    before: dict[str, int], after: dict[str, int], words: str
) -> None:
    assert words in oom_kills.cause_of_end(signal.SIGKILL, before, after)


def test_other_ends_have_their_own_words() -> None:
    assert oom_kills.cause_of_end(3 << 8, {}, {}).endswith("exit status 3")
    assert "signal 11 (SIGSEGV)" in oom_kills.cause_of_end(signal.SIGSEGV, {}, {})
    assert "signal 63 (unknown)" in oom_kills.cause_of_end(63, {}, {})


@pytest.mark.parametrize(
    ("lines", "where", "counter"),
    [
        ("0::/a/b\n", "a/b", "memory.events"),
        ("4:cpu:/c\n3:memory:/a\n0::/\n", "memory/a", "memory.oom_control"),
        # In a container: the path is the host's.
        ("0::/host/path\n", "", "memory.events"),
    ],
)
def test_the_counter_of_the_own_cgroup_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, where: str, counter: str
) -> None:
    (tmp_path / "cgroup").write_text(lines)
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    (tmp_path / where / counter).write_text("low 0\noom 1\noom_kill 7\noom_group_kill 0\n")
    monkeypatch.setattr(oom_kills, "_CGROUPS", tmp_path)
    monkeypatch.setattr(oom_kills, "_OWN", tmp_path / "cgroup")
    monkeypatch.setattr(oom_kills, "_MACHINE", tmp_path / "nothing")
    assert oom_kills.counts() == {str(tmp_path / where / counter): 7}


def test_a_machine_without_counters_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_OWN", "_MACHINE", "_CGROUPS"):
        monkeypatch.setattr(oom_kills, name, tmp_path / "nothing")
    assert oom_kills.counts() == {}
