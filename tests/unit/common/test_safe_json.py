"""JSON of other processes as plain values."""

from __future__ import annotations

import pytest

from fl_queue.common import safe_json
from fl_queue.errors import MessageError


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"\xed\xa0\x80"}',  # Half a character in UTF-8.
        '{"a":"\\ud800"}'.encode("utf-16"),
        b'{"a":"\\ud800"}',
        '{"a":"\\ud800"}',
        b"[NaN]",
        b"[" * 100_000,
    ],
)
def test_what_cannot_be_stored_again_is_refused(text: str | bytes) -> None:
    with pytest.raises(MessageError, match=r"^not a document: "):
        safe_json.loads(text, "a document")


def test_whole_characters_in_escapes_are_read() -> None:
    assert safe_json.loads(b'["\\ud83d\\ude00", "\xc3\xa9"]', "a document") == [
        "\U0001f600",
        "\xe9",
    ]
