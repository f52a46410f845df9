"""
The fields of a hash on the control server -> values of checked types. No Redis here.

Whatever was written there, ``MessageError`` is raised and nothing else: it names the hash and the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from fl_queue.common import safe_json, schema
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import EvaluationState

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=StrEnum)

#: Characters of the status behind the client's id in a receipt's field.
_MAX_STATUS = 64
#: No number of ours comes near it; Python would read one of a million digits.
_WHOLE = re.compile(r"-?[0-9]{1,18}")


class Fields:
    """
    Reader of the fields of one hash.

    Args:
        what: Whose they are, for errors: ``run demo-3f2a9c: state``.
        raw: Field -> its text.
    """

    def __init__(self, what: str, raw: Mapping[str, str]) -> None:
        self._what, self._raw = what, raw

    def _read(self, name: str, default: str | None, parse: Callable[[str], Value]) -> Value:
        text = self._raw.get(name, default)
        if text is None:
            raise MessageError(f"{self._what}.{name} is missing")
        try:
            return parse(text)
        except MessageError as exc:
            raise MessageError(f"{self._what}.{name}: {exc.reason}") from exc

    def text(self, name: str, default: str | None = None) -> str:
        """Text that can be shown."""
        return self._read(name, default, safe_json.printable)

    def one_of(self, name: str, choices: type[Choice], default: str | None = None) -> Choice:
        """A member of an enum."""

        def parse(text: str) -> Choice:
            try:
                return choices(text)
            except ValueError:
                known = ", ".join(choices)
                raise MessageError(f"{text[:64]!r} is not one of {known}") from None

        return self._read(name, default, parse)

    def name(self, name: str) -> str:
        """A run's name or a client id."""
        return self._read(name, None, lambda text: identifiers.parse_name(text, "name"))

    def digest(self, name: str, default: str | None = None) -> str:
        """A digest, or nothing."""
        return self._read(name, default, lambda text: text and identifiers.parse_digest(text))

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        return self._read(name, None if default is None else str(default), parse_whole)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        return self._read(name, None if default is None else str(default), _number)

    def whole_or_none(self, name: str) -> int | None:
        """A whole number; None where the field is empty or not there."""
        return self._read(name, "", lambda text: parse_whole(text) if text else None)

    def number_or_none(self, name: str) -> float | None:
        """The same of any finite number."""
        return self._read(name, "", lambda text: _number(text) if text else None)

    def clients(self, name: str, default: str | None = None) -> tuple[str, ...]:
        """Client ids, or the first and the last of many: ``sim-01..sim-40``."""

        def parse(ids: list[str]) -> list[str]:
            for each in ids:
                first, _, last = each.partition("..")
                identifiers.parse_name(first)
                identifiers.parse_name(last or first)
            return ids

        return tuple(self.json(name, list[str], default, parse))

    def runs(self, name: str, default: str) -> tuple[str, ...]:
        """Run ids."""
        ids = self.json(name, list[str], default, lambda ids: [*map(identifiers.parse_run_id, ids)])
        return tuple(ids)

    def digests(self, name: str) -> dict[str, str]:
        """Names and digests."""

        def parse(found: Mapping[str, str]) -> dict[str, str]:
            return {name: identifiers.parse_digest(digest) for name, digest in found.items()}

        return dict(self.json(name, dict[str, str], "{}", parse))

    def of_clients(self, name: str, hint: Any) -> dict[str, Any]:
        """A map of client ids. Args: ``hint``: type of its values."""

        def parse(found: Mapping[str, Any]) -> dict[str, Any]:
            return {identifiers.parse_name(client): value for client, value in found.items()}

        return dict(self.json(name, dict[str, hint], "{}", parse))

    def json(
        self,
        name: str,
        hint: Any,
        default: str | None = None,
        then: Callable[[Any], Any] = lambda found: found,
    ) -> Any:
        """
        JSON of a type, its text such as can be shown.

        Args:
            hint: As the annotations of a record, see ``schema.parse``.
            then: Makes the value of it.
        """

        def parse(text: str) -> Any:
            found = safe_json.clean(safe_json.loads(text, "JSON"), "JSON")
            if not schema.fits(found, hint):
                raise MessageError(f"{text[:64]!r} is not what is wanted there")
            return then(found)

        return self._read(name, default, parse)


def parse_whole(raw: str | bytes) -> int:
    """A whole number of at most 18 digits. Raises MessageError."""
    text = (raw.decode(errors="replace") if isinstance(raw, bytes) else raw).strip()
    if not _WHOLE.fullmatch(text):
        raise MessageError(f"{text[:64]!r} is no whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        found = float(text) if len(text) <= 64 and text.isascii() else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise MessageError(f"{text[:64]!r} is no finite number")
    return found


def parse_receiver(raw: bytes) -> str:
    """A client id, or ``client:status`` of a further update."""
    client, separator, status = raw.decode(errors="replace").partition(":")
    return f"{identifiers.parse_name(client)}{separator}{safe_json.printable(status[:_MAX_STATUS])}"


def parse_table(text: bytes) -> dict[str, Any]:
    """A map. Raises MessageError, as the others."""
    found = safe_json.clean(safe_json.loads(text, "an entry"), "an entry")
    if type(found) is not dict:
        raise MessageError(f"not an entry: a {type(found).__name__} instead of a map")
    return found


def parse_version(text: bytes) -> dict[str, Any]:
    """A version's entry: its digests name files."""
    found = parse_table(text)
    identifiers.parse_digest(found.get("digest"))
    if "download" in found:
        identifiers.parse_digest(found["download"])
    states = found.get("server_state", {})
    if not schema.fits(states, dict[str, str]) or type(found.get("round", 0)) is not int:
        raise MessageError(f"not a version: {str(found)[:64]!r}")
    for digest in states.values():
        identifiers.parse_digest(digest)
    return found


def parse_evaluation(text: bytes) -> dict[str, Any]:
    """Result of a version's evaluation, or the ticket of its job."""
    found = parse_table(text)
    if "job" not in found and found.get("state") not in tuple(EvaluationState):
        raise MessageError(f"not an evaluation: {str(found)[:64]!r}")
    if found.get("state") == EvaluationState.done and not schema.fits(
        found.get("finished", {}), dict[str, float]
    ):
        raise MessageError("not an evaluation: its metrics are no numbers")
    return found
