"""What others chose as a name is joined below a folder, and leads nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.client import outbox, pausing
from fl_queue.client.client_state import ClientStateFolder
from fl_queue.common.paths import below
from fl_queue.errors import CheckpointError, DataError, MessageError
from fl_queue.models import checkpoint, update_archive
from fl_queue.models.host_cache import HostCache
from fl_queue.protocol import identifiers
from fl_queue.protocol.header import Header
from fl_queue.reporting.exporters import open_sink

DIGEST = "0" * 64
HOSTILE = [
    "", ".", "..", "/", "/etc", "../victim", "a/b", "a/../../victim", "a\\b", "a\0b", "x" * 256,
    "\ud800", "demo/",
]  # fmt: skip


def test_one_name_a_part() -> None:
    folder = Path("/somewhere")
    assert below(folder, "demo-3f2a9c", "7", "a b [x].update") == Path(
        "/somewhere/demo-3f2a9c/7/a b [x].update"
    )


@pytest.mark.parametrize("part", HOSTILE, ids=ascii)
def test_nothing_else_is_a_name(part: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the name"):
        below(tmp_path, part)
    with pytest.raises(DataError, match="not the name"):
        below(tmp_path, "demo", part)


def test_a_link_may_stay_below_and_may_not_leave(tmp_path: Path) -> None:
    inside, victim = tmp_path / "inside", tmp_path / "victim"
    for folder in (inside / "real", victim):
        folder.mkdir(parents=True)
    (inside / "stays").symlink_to(inside / "real")
    (inside / "leaves").symlink_to(victim)
    (tmp_path / "other").symlink_to(inside)

    assert below(inside, "stays", "x") == inside / "stays" / "x"
    # A folder that was put on another disk by its owner.
    assert below(tmp_path / "other", "real") == tmp_path / "other" / "real"
    with pytest.raises(DataError, match="leads out"):
        below(inside, "leaves")
    with pytest.raises(DataError, match="leads out"):
        below(inside, "leaves", "x")


@pytest.mark.parametrize("part", [part for part in HOSTILE if part != "x" * 256], ids=ascii)
def test_every_folder_of_ours_is_joined_so(part: str, tmp_path: Path) -> None:
    header = Header(kind="update", run=part, round=1, client="a", base_digest=DIGEST, token="t")
    for join in (
        lambda: checkpoint.checkpoint_folder(tmp_path, part),
        lambda: HostCache(None, tmp_path, part, 1).has(DIGEST),  # type: ignore[arg-type]
        lambda: update_archive.forget(tmp_path, part),
        lambda: update_archive.prune(tmp_path, part, ()),
        lambda: update_archive.read(tmp_path, part, 1, "a", DIGEST),
        lambda: update_archive.write(tmp_path, header, b"", 1),
        lambda: ClientStateFolder(tmp_path, part, "a").path,
        lambda: ClientStateFolder(tmp_path, "demo-3f2a9c", part).path,
        lambda: pausing.pause(tmp_path, part, "", None),  # type: ignore[arg-type]
        lambda: open_sink("csv", tmp_path, part),
    ):
        with pytest.raises((DataError, CheckpointError)):
            join()


@pytest.mark.parametrize("part", ["/etc", "../victim", "a/b", "a\0b"], ids=ascii)
def test_so_are_names_that_are_made_of_them(part: str, tmp_path: Path) -> None:
    for join in (
        lambda: outbox.path_of(tmp_path, part, 1, "a"),
        lambda: outbox.path_of(tmp_path, "demo-3f2a9c", 1, part),
        lambda: update_archive.read(tmp_path, "demo-3f2a9c", 1, part, DIGEST),
        lambda: update_archive.read(tmp_path, "demo-3f2a9c", 1, "a", part),
        lambda: update_archive.keep_only(tmp_path, "demo-3f2a9c", 1, {part: DIGEST}),
    ):
        with pytest.raises(DataError):
            join()


@pytest.mark.parametrize(
    "raw", [*HOSTILE, "demo\n", "dé", "a_b", "-a", b"\xff", b"a\0", 7, None, []]
)
def test_parsers_take_ids_whole_or_not_at_all(raw: object) -> None:
    for parse in (identifiers.parse_name, identifiers.parse_run_id, identifiers.parse_digest):
        with pytest.raises(MessageError) as caught:
            parse(raw)
        assert caught.value.reason.isprintable()
        assert len(caught.value.reason) < 400


def test_parsers_give_text_back() -> None:
    assert identifiers.parse_name(b"hospital-a") == "hospital-a"
    assert identifiers.parse_run_id(b"demo-3f2a9c") == "demo-3f2a9c"
    assert identifiers.parse_digest(DIGEST) == DIGEST
