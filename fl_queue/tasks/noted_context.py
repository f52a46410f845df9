"""A ``ClientContext`` that notes which of its fields are read: what data depend on, besides files."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fl_queue.tasks.context import ClientContext

_FIELDS = frozenset(field.name for field in fields(ClientContext))


class NotedContext(ClientContext):
    """The context of a job that notes reads. Made by ``noting``."""

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in _FIELDS:
            object.__getattribute__(self, "__dict__").setdefault("_looked_at", set()).add(name)
        return value


def noting(context: ClientContext) -> NotedContext:
    """A context with the same values."""
    noted = object.__new__(NotedContext)
    vars(noted).update(vars(context))
    return noted


def fits(noted: NotedContext, context: ClientContext) -> bool:
    """Whether a context has the values that were read of another one."""
    plain = object.__getattribute__(noted, "__dict__")
    seen = plain.get("_looked_at", ())
    return all(plain[name] == getattr(context, name) for name in seen)
