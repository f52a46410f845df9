"""Every decoder of foreign bytes under any bytes, and under any value in any place of a real input."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import GroupMember, packed
from tests.fuzz import targets
from tests.fuzz.targets import TARGETS

#: What JSON and msgpack can hold.
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\x1b[2J", "²", "group-²", "\ud800", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
JSON = ("manifest", "record", "ticket", "event")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in a plain value."""
    found = [path] if path else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found += places(inner, (*path, key))
    return found  # fmt: skip


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with something else in one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


@settings(max_examples=25)
@given(st.binary(max_size=300))
def test_any_bytes_end_in_documented_errors(data: bytes) -> None:
    for target in TARGETS.values():
        target(data)


@pytest.mark.parametrize("name", JSON)
@settings(max_examples=60)
@given(data=st.data())
def test_any_value_anywhere_in_json_ends_in_documented_errors(
    name: str, data: st.DataObject
) -> None:
    target = TARGETS[name]
    seed = data.draw(st.sampled_from(target.seeds()))
    prefix, text = (seed[:1], seed[1:]) if name == "record" else (b"", seed)
    honest = json.loads(text)
    path = data.draw(st.sampled_from(places(honest)))
    changed = put(honest, path, data.draw(PLAIN))
    target(prefix + json.dumps(changed).encode())


@settings(max_examples=60)
@given(data=st.data())
def test_any_value_anywhere_in_a_groups_header_ends_in_documented_errors(
    data: st.DataObject,
) -> None:
    header, _ = targets.group_element()
    raw = msgpack.unpackb(packed(header))
    path = data.draw(st.sampled_from(places(raw)))
    try:
        changed = msgpack.packb(put(raw, path, data.draw(PLAIN)))
    except (OverflowError, UnicodeEncodeError):  # A value that msgpack cannot encode.
        return
    TARGETS["header"](changed)


def test_every_field_of_a_member_is_among_the_places() -> None:
    raw = msgpack.unpackb(packed(targets.group_element()[0]))

    assert {
        path[2] for path in places(raw) if path[:2] == ("members", 0) and len(path) == 3
    } == set(GroupMember.__dataclass_fields__)


@settings(max_examples=60)
@given(st.sampled_from(places(json.loads(targets.CALL))), PLAIN)
def test_any_value_anywhere_in_a_jobs_call_is_refused_or_the_call_itself(
    path: Any, value: Any
) -> None:
    changed = json.dumps(put(json.loads(targets.CALL), path, value)).encode()

    if TARGETS["job"](b"call\0" + changed.replace(b"\0", b"")):
        assert json.loads(changed)[1:] == json.loads(targets.CALL)[1:]


@settings(max_examples=40)
@given(
    st.sampled_from([*sorted(targets.HASH), b"webhooks", b"dependency_ids"]), st.binary(max_size=50)
)
def test_any_bytes_in_any_field_of_a_jobs_hash_are_refused_or_read(
    field: bytes, value: bytes
) -> None:
    TARGETS["job"](field + b"\0" + value.replace(b"\0", b"\1"))


@settings(max_examples=40)
@given(st.sampled_from(range(len(codec.CODECS))), st.binary(max_size=1300))
def test_any_bytes_of_a_bodys_length_are_summed_or_leave_the_sum_as_it_was(
    index: int, data: bytes
) -> None:
    TARGETS["body"](bytes([index]) + data)
    TARGETS["group-body"](data)
