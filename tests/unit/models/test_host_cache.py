"""The models a host has fetched: shared by its processes, resumed, checked, and removed in time."""

from __future__ import annotations

import operator
import os
import secrets
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_queue.common import files
from fl_queue.errors import (
    ChunksMissing,
    DataError,
    DigestMismatch,
    LocalStorageError,
    NoRoom,
    StoreUnavailable,
)
from fl_queue.models import host_cache
from fl_queue.models.host_cache import HostCache
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.base_part import BasePart, BaseTensor, digest_of
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.federation import wait_for
from tests.support.proxy import Proxy

pytestmark = pytest.mark.timeout(60)

CHUNK = 65_536
RUN = "demo-abc123"
#: Fetches a model as a client's work-horse does, and prints its number of bytes.
FETCH = """
import sys
from pathlib import Path
from fl_queue.models.host_cache import HostCache
from fl_queue.store import Store
url, blob_url, folder, run, digest, nbytes, chunk = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
body = HostCache(Store(url, blob_url), Path(folder), run, int(chunk)).fetch(digest, int(nbytes))
print(len(body.view))
"""


def publish(store: Store, chunks: int) -> tuple[str, bytes]:
    """A model of so many chunks on the data server, the last of them short: (digest, body)."""
    body = secrets.token_bytes((chunks - 1) * CHUNK + 17)
    digest = tensor_layout.body_digest(body)
    put(store, digest, body)
    return digest, body


def put(store: Store, digest: str, body: bytes) -> None:
    pieces = [memoryview(body)[start : start + CHUNK] for start in range(0, len(body), CHUNK)]
    store.data.chunks.put(keyspace.model_blob(RUN, digest), pieces, None)


def fetch(store: Store, folder: Path, digest: str, body: bytes) -> bytes:
    return bytes(HostCache(store, folder, RUN, CHUNK).fetch(digest, len(body)).view)


def reads(store: Store) -> int:
    """Chunks the data server was asked for."""
    stats = store.data.redis.info("commandstats").get("cmdstat_get", {"calls": 0})
    return int(stats["calls"])


def kept(folder: Path) -> set[str]:
    """Files of the run, but for its lock."""
    return {path.name for path in (folder / RUN).iterdir()} - {".lock"}


def part_of(folder: Path, digest: str) -> Path:
    return folder / RUN / f"{digest}.part"


def has_chunks(part: Path, chunks: int) -> bool:
    return part.exists() and part.stat().st_size >= chunks * CHUNK


def start_fetch(
    urls: tuple[str, str], folder: Path, digest: str, body: bytes
) -> subprocess.Popen[str]:
    """A process that fetches after `release`."""
    where = [*urls, str(folder), RUN, digest, str(len(body)), str(CHUNK)]
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, *where],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_several_processes_share_one_download(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    digest, body = publish(store, 40)
    fetching = [start_fetch(redis_urls, tmp_path, digest, body) for _ in range(4)]
    before = reads(store)
    for process in fetching:
        release(process)
    printed = [process.communicate(timeout=30)[0] for process in fetching]

    assert printed == [f"{len(body)}\n"] * 4
    assert reads(store) - before == 40
    assert (tmp_path / RUN / digest).read_bytes() == body


def test_a_model_that_is_here_is_not_fetched_again(store: Store, tmp_path: Path) -> None:
    digest, body = publish(store, 3)
    fetch(store, tmp_path, digest, body)
    before = reads(store)

    assert fetch(store, tmp_path, digest, body) == body
    assert reads(store) == before


def test_an_empty_model_is_a_model(store: Store, tmp_path: Path) -> None:
    assert fetch(store, tmp_path, tensor_layout.body_digest(b""), b"") == b""


def test_a_download_goes_on_where_a_killed_data_server_cut_it_off(
    private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    folder, caught = tmp_path / "cache", []
    with (
        Proxy(private_redis.blob_url) as proxy,
        Store(private_redis.url, proxy.url) as store,
    ):
        digest, body = publish(store, 40)
        proxy.throttle(2e6)
        part = part_of(folder, digest)

        def download() -> None:
            with pytest.raises(StoreUnavailable) as failed:
                fetch(store, folder, digest, body)
            caught.append(failed.value)

        fetching = threading.Thread(target=download)
        fetching.start()
        wait_for("half of it", lambda: has_chunks(part, 10), 20)
        private_redis.kill("data")
        fetching.join(30)
        proxy.throttle(0)
        private_redis.restart("data")
        put(store, digest, body)
        done, before = part.stat().st_size // CHUNK, reads(store)

        assert len(caught) == 1
        assert 10 <= done < 40
        assert fetch(store, folder, digest, body) == body
        assert reads(store) - before == 40 - done
        assert kept(folder) == {digest}


def test_a_download_goes_on_where_a_killed_process_left_it(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    digest, body = publish(store, 40)
    part = part_of(tmp_path, digest)
    with Proxy(redis_urls[1]) as proxy:
        process = start_fetch((redis_urls[0], proxy.url), tmp_path, digest, body)
        proxy.throttle(2e6)
        release(process)
        wait_for("some of it", lambda: has_chunks(part, 10), 20)
        process.kill()
        process.communicate()
    part.write_bytes(part.read_bytes() + b"half a chu")  # It was killed while it wrote.
    done, before = part.stat().st_size // CHUNK, reads(store)

    assert 10 <= done < 40
    assert fetch(store, tmp_path, digest, body) == body
    assert reads(store) - before == 40 - done
    assert kept(tmp_path) == {digest}


@pytest.mark.parametrize("damage", ["changed", "cut", "longer"])
def test_a_damaged_file_is_fetched_again(store: Store, tmp_path: Path, damage: str) -> None:
    digest, body = publish(store, 3)
    fetch(store, tmp_path, digest, body)
    file = tmp_path / RUN / digest
    broken = {
        "changed": body[:-1] + bytes([body[-1] ^ 1]),
        "cut": body[:CHUNK],
        "longer": body + b"\0",
    }
    file.write_bytes(broken[damage])

    assert fetch(store, tmp_path, digest, body) == body
    assert file.read_bytes() == body


def test_a_damaged_part_is_not_gone_on_with_for_ever(store: Store, tmp_path: Path) -> None:
    digest, body = publish(store, 3)
    part = part_of(tmp_path, digest)
    part.parent.mkdir()
    part.write_bytes(bytes(2 * CHUNK))
    with pytest.raises(DigestMismatch) as caught:
        fetch(store, tmp_path, digest, body)

    assert caught.value.digest == digest
    assert fetch(store, tmp_path, digest, body) == body


def test_content_that_differs_from_its_digest_is_refused(store: Store, tmp_path: Path) -> None:
    digest, body = publish(store, 3)
    store.data.redis.setrange(
        keyspace.chunk(keyspace.model_blob(RUN, digest), 1), 5, bytes([body[CHUNK + 5] ^ 1])
    )
    with pytest.raises(DigestMismatch) as caught:
        fetch(store, tmp_path, digest, body)

    assert caught.value.digest == digest
    assert kept(tmp_path) == set()


def test_a_missing_chunk_is_named_and_what_came_before_it_is_kept(
    store: Store, tmp_path: Path
) -> None:
    digest, body = publish(store, 5)
    store.data.redis.rename(keyspace.chunk(keyspace.model_blob(RUN, digest), 3), "aside")
    with pytest.raises(ChunksMissing) as caught:
        fetch(store, tmp_path, digest, body)
    store.data.redis.rename("aside", keyspace.chunk(keyspace.model_blob(RUN, digest), 3))
    before = reads(store)

    assert caught.value.index == 3
    assert fetch(store, tmp_path, digest, body) == body
    assert reads(store) - before == 2


def test_the_newest_two_are_kept_and_those_that_a_process_has_in_use(
    store: Store, tmp_path: Path
) -> None:
    first, body = publish(store, 2)
    reading = HostCache(store, tmp_path, RUN, CHUNK).fetch(first, len(body))
    forgotten = part_of(tmp_path, "of-a-version-nobody-wants-any-more")
    forgotten.write_bytes(bytes(9))
    os.utime(tmp_path / RUN / first, (1, 1))
    os.utime(forgotten, (2, 2))
    others: list[str] = []

    def fetch_others() -> None:
        for _ in range(3):
            digest, other = publish(store, 2)
            others.append(digest)
            fetch(store, tmp_path, digest, other)
            os.utime(tmp_path / RUN / digest, (2 + len(others),) * 2)

    fetch_others()
    # A worker names the file to its training process, which opens it by itself.
    assert kept(tmp_path) == {first, *others[1:]}
    assert bytes(reading.view) == body
    reading = HostCache(store, tmp_path, RUN, CHUNK).fetch(first, len(body))
    fetch_others()
    assert kept(tmp_path) == {first, *others[-2:]}

    del reading
    fetch_others()
    assert kept(tmp_path) == set(others[-2:])


def test_a_digest_that_names_another_file_is_refused_and_the_file_stays(
    store: Store, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    with pytest.raises(DataError, match="is not a digest"):
        fetch(store, tmp_path / "cache", "../../other", b"precious")
    assert other.read_bytes() == b"precious"


def test_models_of_runs_that_are_over_are_removed(store: Store, tmp_path: Path) -> None:
    digest, body = publish(store, 2)
    fetch(store, tmp_path, digest, body)
    (tmp_path / "other-abc123").mkdir()
    host_cache.sweep(tmp_path, lambda run: run == RUN)
    host_cache.sweep(tmp_path / "not-there", lambda run: True)

    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["other-abc123"]


def base_and_body() -> tuple[BasePart, bytes]:
    """A base part of two chunks."""
    body = bytes(range(256)) * 300
    tensors = (BaseTensor("w", "BF16", (len(body) // 2,)),)
    base = BasePart(digest_of(tensors, [body]), len(body), tensors)
    return base, body


def publish_base(store: Store, run: str, digest: str, body: bytes) -> None:
    pieces = [memoryview(body)[start : start + CHUNK] for start in range(0, len(body), CHUNK)]
    store.data.chunks.put(keyspace.model_blob(run, digest), pieces, None)


def test_two_runs_share_one_base_part_that_goes_a_day_after_the_last(
    store: Store, tmp_path: Path
) -> None:
    runs = (RUN, "other-abc123")
    base, body = base_and_body()
    publish_base(store, RUN, base.digest, body)  # The other run's chunks are not even there.
    for run in runs:
        assert HostCache(store, tmp_path, run, CHUNK).fetch_base(base).view == body
    file = tmp_path / "base_parts" / base.digest
    for over in runs:
        os.utime(file, (1, 1))
        host_cache.sweep(tmp_path, partial(operator.eq, over))
        assert file.exists() == (over == RUN)

    assert HostCache(store, tmp_path, RUN, CHUNK).fetch_base(base).view == body
    host_cache.sweep(tmp_path, lambda run: True)
    assert file.exists()


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_a_damaged_base_part_is_fetched_again_and_a_part_gone_on_with(
    store: Store, tmp_path: Path, damage: bytes
) -> None:
    base, body = base_and_body()
    cache = HostCache(store, tmp_path, RUN, CHUNK)
    publish_base(store, RUN, base.digest, body[:CHUNK])
    with pytest.raises(ChunksMissing):
        cache.fetch_base(base)
    part = tmp_path / "base_parts" / f"{base.digest}.part"
    assert part.stat().st_size == CHUNK
    publish_base(store, RUN, base.digest, body)
    assert cache.fetch_base(base).view == body
    (tmp_path / "base_parts" / base.digest).write_bytes(damage)
    assert cache.fetch_base(base).view == body


def test_another_base_part_than_the_digest_is_refused(store: Store, tmp_path: Path) -> None:
    base, body = base_and_body()
    publish_base(store, RUN, base.digest, body[:-1] + b"x")
    with pytest.raises(DigestMismatch):
        HostCache(store, tmp_path, RUN, CHUNK).fetch_base(base)
    assert not list((tmp_path / "base_parts").glob(f"{base.digest}*"))


def test_room_is_asked_for_what_is_left_of_a_base_part(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, body = base_and_body()
    publish_base(store, RUN, base.digest, body)
    part = tmp_path / "base_parts" / f"{base.digest}.part"
    part.parent.mkdir()
    part.write_bytes(body[:CHUNK])
    free = len(body) - CHUNK - 1
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=1 << 30)
    )
    cache = HostCache(store, tmp_path, RUN, CHUNK)
    with pytest.raises(NoRoom, match=f"the base part of the model .{len(body) - CHUNK:,} bytes"):
        cache.fetch_base(base)
    free += 1
    assert cache.fetch_base(base).view == body


def test_a_download_of_a_base_part_holds_up_no_sweep_no_other_base_part_and_no_mark(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    base, body = base_and_body()
    other = BasePart(digest_of(base.tensors, [body[::-1]]), base.nbytes, base.tensors)
    for one, content in ((base, body), (other, body[::-1])):
        publish_base(store, RUN, one.digest, content)
    part = tmp_path / "base_parts" / f"{base.digest}.part"
    with Proxy(redis_urls[1]) as proxy, Store(redis_urls[0], proxy.url) as slow:
        proxy.throttle(20e3)
        caches = [HostCache(one, tmp_path, RUN, CHUNK) for one in (slow, store)]
        fetching = threading.Thread(target=caches[0].fetch_base, args=(base,))
        fetching.start()
        wait_for("a download", part.exists, 20)
        host_cache.sweep(tmp_path, lambda run: False)
        assert caches[1].fetch_base(other).view == body[::-1]
        assert host_cache.hold_base(tmp_path, "other-abc123", other) is not None
        assert part.exists()  # All the while.
        proxy.throttle(0)
        fetching.join(30)
    assert caches[1].fetch_base(base).view == body


def test_a_sweep_leaves_the_base_parts_when_another_is_at_work(
    store: Store, tmp_path: Path
) -> None:
    base, body = base_and_body()
    publish_base(store, RUN, base.digest, body)
    HostCache(store, tmp_path, RUN, CHUNK).fetch_base(base)
    file = tmp_path / "base_parts" / base.digest
    os.utime(file, (1, 1))
    with files.file_lock(file.parent / ".lock"):
        host_cache.sweep(tmp_path, lambda run: True)
    assert file.exists()
    host_cache.sweep(tmp_path, lambda run: True)
    assert not file.exists()


def test_a_folder_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    digest, body = publish(store, 2)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalStorageError) as caught:
        fetch(store, tmp_path / "file", digest, body)

    assert digest in str(caught.value)
    assert "--state-dir" in str(caught.value)
