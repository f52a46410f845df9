"""What data depend on: names, sizes and times, files that were opened, folders that were listed, programs."""

from __future__ import annotations

import importlib.machinery
import os
import socket
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np

from fl_queue.tasks import fingerprint


def test_files_that_are_opened_are_noted_and_programs_too(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"1")
    with fingerprint.watching() as opened:
        path.read_bytes()
        np.fromfile(path, np.uint8)
        (tmp_path / "written").write_text("x")
    assert set(opened.paths) == {str(path)}
    assert not opened.is_open
    with fingerprint.watching() as opened:
        os.system("true")
    assert opened.is_open


def test_a_file_that_changes_while_others_are_read_is_read_again(tmp_path: Path) -> None:
    path, gone, folder = tmp_path / "a.bin", tmp_path / "gone", tmp_path / "folder"
    path.write_bytes(b"1")
    folder.mkdir()
    with fingerprint.watching() as opened:
        path.read_bytes()
        gone.write_bytes(b"1")
        gone.read_bytes()
        gone.unlink()
        os.listdir(folder)
    assert not opened.have_changed(fingerprint.taken(opened.paths, opened.folders))

    (folder / "added").touch()
    assert opened.have_changed(fingerprint.taken(opened.paths, opened.folders))
    with fingerprint.watching() as opened:
        path.read_bytes()
        path.write_bytes(b"12")
        path.read_bytes()
    assert opened.have_changed(fingerprint.taken(opened.paths, opened.folders))


def test_threads_of_this_process_itself_and_imports_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "listed_module.py").write_text("")
    asked, end = threading.Event(), threading.Event()

    def look() -> None:
        asked.wait()
        os.listdir(tmp_path)
        socket.socket().connect_ex(("127.0.0.1", 0))
        end.set()

    own = threading.Thread(target=look)
    own.start()
    with fingerprint.watching([own, threading.main_thread()]) as opened:
        asked.set()
        end.wait()
        importlib.machinery.FileFinder(
            str(tmp_path), (importlib.machinery.SourceFileLoader, [".py"])
        ).find_spec("listed_module")
    own.join()
    assert (opened.paths, opened.folders, opened.is_open) == ({}, {}, False)

    with fingerprint.watching() as opened:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    assert opened.is_open


def test_a_fingerprint_has_size_time_and_what_came_or_went(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    seen = [fingerprint.taken([tmp_path])]
    (tmp_path / "a").write_text("2")
    seen.append(fingerprint.taken([tmp_path]))
    (tmp_path / "b").touch()
    seen.append(fingerprint.taken([tmp_path]))
    (tmp_path / "b").unlink()
    seen.append(fingerprint.taken([tmp_path]))
    assert all(one != other for one, other in pairwise(seen))
    assert fingerprint.taken([tmp_path / "none"]) == {str(tmp_path / "none"): None}
