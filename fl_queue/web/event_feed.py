"""
Server-sent events: one thread waits on the event streams in Redis, and wakes all open pages.

State without an event (counted time, heartbeats) is read once a second, while a page is open. Parts that
have not changed are not sent again. Redis is read once for all pages that show the same run, by a few
threads of their own, so that other requests do not wait for them. The id of a message is that of the
newest event in it, so a page that reconnects gets the lines it missed.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Any

import anyio

from fl_queue.errors import StoreUnavailable
from fl_queue.reporting import run_status
from fl_queue.store import Store, keyspace
from fl_queue.web import view_model
from fl_queue.web.connection import Connection

BLOCK_MS = 1000
RETRY_S = 1.0
#: The shortest time between two messages to a page: events may come faster than a user reads.
LEAST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
#: Threads that read Redis for open pages.
THREADS = 2
_STREAM_ID = re.compile(r"\d{1,20}-\d{1,20}")


class Feed:
    """
    Messages for the open pages.

    Args:
        connection: To Redis.
        greeting: The first message to every page.
    """

    def __init__(self, connection: Connection, greeting: dict[str, Any]) -> None:
        self.connection, self.greeting = connection, greeting
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pages = 0
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, dict[str, Any]]] = {}
        self._looking, self._moment = threading.Lock(), dict[Hashable, Any]()
        self._threads: anyio.CapacityLimiter | None = None

    async def messages(self, name: str, cursor: str) -> AsyncIterator[str]:
        """
        Yield a page's messages, without an end.

        Args:
            name: The run it shows; empty: the one that trains, or the newest.
            cursor: Id of the last message it has.
        """
        threads = self._enter()
        try:
            yield _message("hello", self.greeting)
            view = _View(self, name, cursor if _STREAM_ID.fullmatch(cursor) else "")
            while True:
                news = self._news
                for message in await anyio.to_thread.run_sync(view.look, limiter=threads):
                    yield message
                await asyncio.sleep(LEAST_PAUSE_S)
                with anyio.move_on_after(MAX_PAUSE_S):
                    await news.wait()
        finally:
            self._pages -= 1

    def _enter(self) -> anyio.CapacityLimiter:
        """Count a page in; the first one starts the thread, which ends when there is none."""
        self._loop = asyncio.get_running_loop()
        self._threads = self._threads or anyio.CapacityLimiter(THREADS)
        self._pages += 1
        if self._pages == 1:
            threading.Thread(target=self._listen, name="web-feed", daemon=True).start()
        return self._threads

    def _listen(self) -> None:
        # Two threads overlap for a second when a page comes as the last one leaves.
        if not self._lock.acquire(timeout=2 * BLOCK_MS / 1000):
            return
        cursors: dict[str, str] = {}
        try:
            while self._pages > 0:
                try:
                    with self.connection.store() as store:
                        cursors = _wait(store, cursors)
                except StoreUnavailable:
                    threading.Event().wait(RETRY_S)
                self._tell()
        finally:
            self._lock.release()

    def _tell(self) -> None:
        def wake() -> None:
            news, self._news = self._news, asyncio.Event()
            self._moment = {}
            news.set()

        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(wake)
        except RuntimeError:
            self._pages = 0  # The server has ended.

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """
        Result or error of ``make`` at this moment: once for all pages, until there is news.

        Raises:
            StoreUnavailable: Redis was not reachable.
        """
        moment = self._moment
        with self._looking:
            if key not in moment:
                try:
                    moment[key] = make()
                except StoreUnavailable as exc:
                    # Else each page would wait for a silent server, in turn.
                    moment[key] = exc
            found = moment[key]
        if isinstance(found, StoreUnavailable):
            raise StoreUnavailable(found.url, found.reason, found.trouble)
        return found

    def history(self, store: Store, run: str) -> dict[str, Any]:
        """A run's history; everything in it comes with an event, so it is read again only after one."""
        newest = store.control.events.last_id(keyspace.events(run))
        kept = self._kept.get(run)
        if kept is None or kept[0] != newest:
            if len(self._kept) > 16:
                self._kept.clear()
            kept = self._kept[run] = newest, view_model.history(store, run)
        return kept[1]


def _wait(store: Store, cursors: dict[str, str]) -> dict[str, str]:
    """Wait for an event of any run or client, at most a second; the cursors after it."""
    streams = [
        keyspace.events(state.run_id) for state in run_status.living_runs(store) if state.active
    ]
    streams += [keyspace.client_events(client) for client in store.control.clients.heartbeat_ages()]
    after = {
        stream: cursors.get(stream) or store.control.events.last_id(stream) for stream in streams
    }
    if not after:
        threading.Event().wait(BLOCK_MS / 1000)
        return after
    newer = {stream: entry for stream, entry, _ in store.control.events.read(after, BLOCK_MS)}
    return after | newer


class _View:
    """State sent to one page."""

    def __init__(self, feed: Feed, name: str, cursor: str) -> None:
        self.feed, self.name, self.cursor = feed, name, cursor
        self._run = ""
        self._sent: dict[str, str] = {}

    def look(self) -> list[str]:
        """The messages for what has changed."""
        try:
            run, found = self.feed.shared(("parts", self.name), self._parts)
            return [*self._changed(found), *self._log(run)]
        except StoreUnavailable as exc:
            text = f"{exc} Trying again."
            return self._changed({"trouble": _message("trouble", {"text": text})})

    def _parts(self) -> tuple[str, dict[str, str]]:
        """The run that is shown, and each part as its message."""
        with self.feed.connection.store() as store:
            found = view_model.parts(store, self.name)
            run = found["status"]["run_id"]
            found["history"] = self.feed.history(store, run) if run else None
            found["trouble"] = {"text": ""}
        return run, {part: _message(part, value) for part, value in found.items()}

    def _changed(self, found: dict[str, str]) -> list[str]:
        changed = {part: text for part, text in found.items() if self._sent.get(part) != text}
        self._sent |= changed
        return list(changed.values())

    def _log(self, run: str) -> list[str]:
        is_other = run != self._run
        if is_other:
            # The cursor a page comes with is of the run it showed; its lines are still there.
            self.cursor, self._run = ("" if self._run else self.cursor), run
        cursor = self.cursor
        lines = (
            self.feed.shared(("log", run, cursor), lambda: self._lines(run, cursor)) if run else []
        )
        if not lines and not is_other:
            return []
        fresh = is_other and not self.cursor
        self.cursor = lines[-1][0] if lines else self.cursor
        return [_message("log", {"fresh": fresh, "lines": lines}, self.cursor)]

    def _lines(self, run: str, cursor: str) -> list[tuple[str, str]]:
        with self.feed.connection.store() as store:
            return view_model.log(store, run, cursor)


def _message(event: str, data: Any, entry: str = "") -> str:
    # JSON has no line break of its own, so data is one line.
    tail = f"id: {entry}\n" if entry else ""
    return (
        f"event: {event}\n{tail}data: {json.dumps(data, sort_keys=True, separators=(',', ':'))}\n\n"
    )
