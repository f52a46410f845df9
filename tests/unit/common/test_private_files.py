"""What fl-queue writes is for its owner alone from the moment it is there, whatever the umask."""

from __future__ import annotations

import ast
import ctypes
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3

from fl_queue.client import outbox, pausing
from fl_queue.client.client_state import AcceptedUpdate, ClientStateFolder
from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.models import checkpoint, update_archive
from fl_queue.protocol import signing
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.store import credentials
from fl_queue.store.credentials import Credentials, Login
from fl_queue.store.embedded import server_pair
from tests.support.checkout import ROOT

RUN = "r-000001"
BODY = b"\0" * 8
MANIFEST = Manifest((TensorSpec("w", (2,), "parameter"),))
UNPRIVILEGED = 65534


@pytest.fixture
def no_umask() -> Iterator[None]:
    """What a file is born with is then all that keeps others out."""
    before = os.umask(0)
    yield
    os.umask(before)


def made() -> Credentials:
    login = Login("hospital-a", "open-sesame")
    return Credentials("hospital-a", signing.new_key()[0], "redis://r", "redis://r", {"all": login})


def header() -> Header:
    return Header(
        kind="update",
        run=RUN,
        round=1,
        client="hospital-a",
        token="t",
        body_bytes=8,
        num_examples=1,
    )


def modes(folder: Path) -> dict[str, str]:
    """Everything that others have a right to."""
    return {
        str(path.relative_to(folder.parent)): stat.filemode(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
        if path.stat().st_mode & 0o077 and not path.is_symlink()
    }


def test_everything_in_a_state_folder_is_its_owners_alone(no_umask: None, tmp_path: Path) -> None:
    state = tmp_path / "made" / "fl-queue"
    site = WorkerSettings(state_dir=state, client="hospital-a")
    digest = blake3(BODY).hexdigest()
    pausing.register_client(site)
    pausing.pause(state, "hospital-a", "a scan", datetime.now(UTC))
    outbox.write(site.outbox, header(), [BODY])
    update_archive.write(state, replace(header(), body_digest=digest), BODY, 1)
    checkpoint.write(state / "checkpoints" / RUN, digest, MANIFEST, BODY, {})
    states = ClientStateFolder(site.client_states, RUN, "hospital-a")
    states.write(AcceptedUpdate(1, digest), MANIFEST, [BODY])
    with files.file_lock(site.cache / RUN / ".lock"), files.appended(site.cache / RUN / "x.part"):
        pass
    with files.fresh(state / "worker.log"):
        pass
    credentials.write(state / "hospital-a.toml", made())
    with server_pair.start(state):
        found = modes(state.parent)

    assert found == {}
    assert len(list(state.rglob("*"))) > 25


def test_requested_files_have_the_mode_of_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o026)
    try:
        files.write(tmp_path / "made" / "card.md", b"#")
        checkpoint.export(BODY, MANIFEST, tmp_path / "made" / "model.safetensors", {})
    finally:
        os.umask(before)

    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert found == {"made": 0o751, "card.md": 0o640, "model.safetensors": 0o640}


def test_a_neighbour_cannot_open_credentials_while_they_are_written(
    no_umask: None, tmp_path: Path
) -> None:
    """Another account waits for each new name in the folder, and opens it at once."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another account")
    folder = open_to_all(tmp_path)
    with neighbour(folder) as counts:
        for number in range(300):
            credentials.write(folder / f"{number}.toml", made())
    seen, stolen = counts()

    assert seen >= 300
    assert stolen == 0


def open_to_all(folder: Path) -> Path:
    """A folder in which every account may look around and write, as /tmp: files of others stay theirs."""
    for each in (folder, folder.parent, folder.parent.parent):
        each.chmod(0o755)
    made = folder / "shared"
    made.mkdir()
    made.chmod(0o1777)
    return made


@contextmanager
def neighbour(folder: Path) -> Iterator[Callable[[], tuple[int, int]]]:
    """A process of an unprivileged account that counts the new names it saw and the descriptors it got."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(folder), 0x100) >= 0  # IN_CREATE
    out, counts_write = os.pipe()
    stop_read, stop = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(UNPRIVILEGED)
        os.setuid(UNPRIVILEGED)
        os.close(stop)
        os.write(counts_write, struct.pack("QQ", *_steal(folder, watch, stop_read)))
        os._exit(0)
    os.close(counts_write)

    def result() -> tuple[int, int]:
        seen, stolen = struct.unpack("QQ", os.read(out, 16))
        return seen, stolen

    try:
        yield result
    finally:
        os.close(stop)
        os.waitpid(child, 0)


def _steal(folder: Path, watch: int, stop: int) -> tuple[int, int]:
    seen = stolen = 0
    ended = False
    os.set_blocking(stop, False)
    while True:
        try:
            events = os.read(watch, 65536)
        except BlockingIOError:
            if ended:
                return seen, stolen
            with suppress(BlockingIOError):
                ended = os.read(stop, 1) == b""
            continue
        at = 0
        while at < len(events):
            length = struct.unpack_from("I", events, at + 12)[0]
            name = events[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length
            seen += 1
            try:
                os.close(os.open(os.path.join(os.fsencode(folder), name), os.O_RDONLY))
                stolen += 1
            except OSError:
                pass


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """At the names that could once be guessed, and at those that stay."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in (f"a.toml.{os.getpid()}{files.UNFINISHED}", "a.toml", "a.log", "a.lock", "a.part"):
        (shared / name).symlink_to(victim)

    credentials.write(shared / "a.toml", made(), force=True)
    files.fresh(shared / "a.log").close()
    for touch in (files.acquire_lock, files.appended, files.create):
        for name in ("a.lock", "a.part"):
            with pytest.raises(OSError, match=r"symbolic links|File exists"):
                touch(shared / name)

    assert victim.read_text() == "untouched"
    assert not (shared / "a.toml").is_symlink()
    assert not (shared / "a.log").is_symlink()


def test_a_name_that_is_there_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("of another process")

    with pytest.raises(FileExistsError):
        files.create(tmp_path / "old")


#: Functions that make a file or a folder -> where they may be called by hand, and why.
ELSEWHERE = {
    "fl_queue/common/files.py": "is what all others call",
    "fl_queue/common/failpoints.py": "for tests alone",
    "fl_queue/experiments/demo.py": "the folder that --output names",
    "fl_queue/reporting/exporters/__init__.py": "the folder that --output names",
    "fl_queue/reporting/exporters/tensorboard.py": "the folder that --output names",
    "fl_queue/cli/starter/__init__.py": "a project of the user's own",
    "fl_queue/tasks/partition_labels.py": "in a temporary folder, 0700, that experiments/partition_preview.py has made",
    "fl_queue/models/checkpoint.py": "export, in a temporary folder, 0700",
}
MAKE = {"mkdir", "makedirs", "write_text", "write_bytes", "touch", "mkstemp", "copy", "copy2"}


def makes(call: ast.Call) -> bool:
    """Whether a call makes a file or a folder with whatever mode the umask gives."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if ast.unparse(call.func) == "copy.copy":
        return False  # Of a value.
    if name in MAKE:
        return not (name == "copy" and isinstance(call.func, ast.Attribute) and not call.args)
    if name != "open":
        return False
    words = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
    flags = [node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)]
    is_mode = any(isinstance(word, str) and word.strip("bt+") in ("w", "a", "x") for word in words)
    return is_mode or "O_CREAT" in flags


def test_every_file_and_folder_is_made_by_one_module() -> None:
    found = {}
    for folder in ("fl_queue", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if not any(f"{name}(" in text for name in (*MAKE, "open")):
                continue
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            if lines := [call.lineno for call in calls if makes(call)]:
                found[str(path.relative_to(ROOT))] = lines

    assert {path: lines for path, lines in found.items() if path not in ELSEWHERE} == {}
    assert set(ELSEWHERE) - set(found) == set()  # Nothing is excused that is not there.
