"""
The parts of an error, or of names that were read, that leave a site: decided in this one place.

A message may quote anything: a cell, a column's header, a file name, a path, text of a library or of a
task's own code. So nothing of it leaves but an error's ``public`` text, which has the config's own words and
numbers alone. Of every other error these leave: its class, the field of the config that it names, the line of the
task's own code where it was raised. The whole message belongs into the log of the worker, where the site
looks. The evaluator, pools and Flower clients follow the same rule: the control server has many readers.
No Redis and no torch here.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, FLQueueError
from fl_queue.protocol.header import MAX_TEXT
from fl_queue.protocol.trainer_messages import Failure

#: Ends the disclosed text of an error whose message is longer.
FULL = "the full message is in the log of its worker"
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def disclosed(error: BaseException, config: RunConfig | None = None) -> str:
    """
    An error as others may read it, in one line.

    Args:
        config: Of the run that it is about: names its fields, and the task's own code.
    """
    return shown(failure_of(error, config))


def failure_of(
    error: BaseException, config: RunConfig | None = None, *, lasts: bool = False
) -> Failure:
    """
    The parts of an error that may leave the process in which it was raised.

    Args:
        config: As of ``disclosed``.
        lasts: Whether another attempt would meet it.
    """
    public = error.public if isinstance(error, FLQueueError) else ""
    kind = class_name(type(error))
    if not public:
        field, line = _field(error, config), _own_line(error, config)
        return Failure(kind=kind, field=field[:256], line=line[:256], lasts=lasts)
    named, whole = "", str(error)
    if isinstance(error, ConfigError):
        named, whole = error.field[:256], error.reason
    return Failure(
        kind=kind,
        field=named,
        public=public[:MAX_TEXT],
        is_whole=public == whole,
        lasts=lasts,
    )


def shown(failure: Failure) -> str:
    """The one line that others may read of an error; nothing else of it leaves a site."""
    if not failure.public:
        where = ", ".join(filter(None, (failure.field, failure.line)))
        return f"{failure.kind}{f' ({where})' if where else ''}; {FULL}"
    text = f"{failure.field or failure.kind}: {failure.public}"
    return text if failure.is_whole else f"{text}; {FULL}"


def class_name(kind: type) -> str:
    """
    Name of a class, or of the first of its bases that a module defines.

    One that was made while a program ran may be called after anything, such as a label.
    """
    for one in kind.__mro__:
        name = one.__name__
        if _CLASS.fullmatch(name) and getattr(sys.modules.get(one.__module__), name, None) is one:
            return name
    return object.__name__


def words_of(config: RunConfig) -> frozenset[str]:
    """The words that a run's ``[task]`` table holds: names of columns and classes that are known to all."""
    return frozenset(_words(config.task))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _words(item)
    elif isinstance(value, str):
        yield value
        yield from (part.strip() for part in value.split(","))
    elif isinstance(value, Sequence):
        for item in value:
            yield from _words(item)
    else:
        yield str(value)


def _field(error: BaseException, config: RunConfig | None) -> str:
    """The config's field that an error names, if the config has it; else empty."""
    if config is None or not isinstance(error, ConfigError):
        return ""
    section, _, key = error.field.partition(".")
    return error.field if key in config.to_dict().get(section, ()) else ""


def _own_line(error: BaseException, config: RunConfig | None) -> str:
    """Line of the task's own code that an error comes from, whose modules the config names; else empty."""
    codes = config.own_code() if config is not None else ()
    own = {code.partition(":")[0] for code in codes}
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [
        f"line {line} of {name}"
        for frame, line in frames
        if (name := frame.f_globals.get("__name__")) in own
    ]
    return lines[-1] if lines else ""
