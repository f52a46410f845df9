"""
Logs on standard error: text for users, or with ``FLQ_LOG=json`` one JSON document a line.

What starts a process hands the variable on, so a federation logs one way. No Redis here.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping

from fl_queue.common import escaping

VARIABLE = "FLQ_LOG"
TEXT = "text"
JSON = "json"
FORMATS = (TEXT, JSON)
#: Our messages begin with what they are about: ``run=demo-3f2a9c round=3 healed: ...``.
_ABOUT = re.compile(r"(run|round|client|job|version)=(\S+) ")
#: Fields that a call of the logger may add.
_EXTRA = ("exit_code",)


def is_json(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether logs are to be JSON."""
    return environ.get(VARIABLE, "") == JSON


def set_up(level: int, text_format: str) -> None:
    """
    Log to standard error in the format of ``FLQ_LOG``, unless this process logs already.

    Args:
        level: The least that is logged.
        text_format: Format of the lines of text.
    """
    formatter = JsonFormatter() if is_json() else TextFormatter(text_format)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])


def set_up_worker() -> None:
    """Log a worker process to standard error, one line for each message, without RQ's lines about jobs."""
    set_up(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("rq.worker").setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """Lines of text: control characters are escaped, and a message is one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message on one line."""
        return escaping.line(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; a traceback has several lines."""
        return escaping.block(super().format(record))


class JsonFormatter(logging.Formatter):
    """
    ``{"at", "level", "logger", "message", "pid"}``, the fields of the message, and ``error``.

    ``at`` is Unix time by this machine's clock, seconds; ``error`` a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one JSON document."""
        message = record.getMessage()
        about = {}
        while match := _ABOUT.match(message):
            about[match[1]] = (
                int(match[2]) if match[2].isascii() and match[2].isdecimal() else match[2]
            )
            message = message[match.end() :]
        fields = {
            "at": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "pid": record.process,
            **about,
            **{name: getattr(record, name) for name in _EXTRA if hasattr(record, name)},
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return escaping.json_text(json.dumps(fields, ensure_ascii=False, default=str))
