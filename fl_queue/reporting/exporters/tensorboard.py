"""
A run's numbers as a TensorBoard event file, written by TensorBoard's own record writer.

``tensorboard`` and not ``tensorboardX``: that one imports torch where there is one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from fl_queue.common import files
from fl_queue.reporting.curves import Point
from fl_queue.reporting.exporters.base import Numbers
from fl_queue.store import RunState

#: Length of a record and its check sum before the bytes, the check sum of the bytes behind them.
_HEAD, _TAIL = 12, 4


class EventFile:
    """One event file in a folder, to which is added. Args: ``folder``: the run's, made when needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "events.out.tfevents.0.fl-queue"

    def write(self, state: RunState, numbers: Numbers) -> int:
        """Add the points that the file does not have; returns how many."""
        known = self._known()
        new = [point for point in numbers.points if known.get(_key(point)) != _single(point.value)]
        if not new:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.appended(self.path, is_private=False) as file:
            writer = RecordWriter(file)
            if file.tell() == 0:  # codespell:ignore tell
                opening = Event(wall_time=new[0].at, file_version="brain.Event:2")
                writer.write(opening.SerializeToString())
            # In the order of time, as TensorBoard takes a step back for a restart.
            for point in sorted(new, key=lambda point: (point.step, point.at, point.curve)):
                writer.write(_event(point).SerializeToString())
        return len(new)

    def _known(self) -> dict[tuple[str, int], float]:
        """(curve, step) -> the newest value in the file; a torn record at its end is cut off."""
        if not self.path.exists():
            return {}
        data = self.path.read_bytes()
        known, whole = {}, 0
        for record, end in _records(data):
            whole = end
            event = Event.FromString(record)
            for value in event.summary.value:
                known[value.tag, event.step] = value.simple_value
        if whole < len(data):
            os.truncate(self.path, whole)
        return known


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each whole record of an event file, and where it ends."""
    start = 0
    while start + _HEAD <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + _HEAD + length + _TAIL
        if end > len(data):
            return
        yield data[start + _HEAD : end - _TAIL], end
        start = end


def _event(point: Point) -> Event:
    value = Summary.Value(tag=point.curve, simple_value=point.value)
    return Event(wall_time=point.at, step=point.step, summary=Summary(value=[value]))


def _key(point: Point) -> tuple[str, int]:
    return point.curve, point.step


def _single(value: float) -> float:
    """A value as the file has it: float32."""
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    return float(single)
