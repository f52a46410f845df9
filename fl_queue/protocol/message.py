"""
Wire format of updates, models, evaluations and failure reports.

An element is a prefix, a msgpack header, and the body when it travels inline:

    b"FLQ1" | round, u32 LE | header bytes, u32 LE | header | body (empty when it is in chunks)

``header.py`` has the header's fields, ``tensor_layout.py`` the layout of a body: float32 values (model; behind
them its base part, ``base_part.py``), float32 differences ``local - base`` (update), int64 values in a group,
which is an exact sum. The body of an
update may be encoded to fewer bytes (``codecs/codec.py``); its header then names the codec, and size and
digest are of those bytes.

Decoding raises ``MessageError`` and nothing else, whatever the bytes are, and allocates no more than the
caps allow. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence

from fl_queue.errors import MessageError
from fl_queue.protocol.header import MAX_HEADER_BYTES, Header, TensorEntry, packed, unpacked
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Bytes, body_digest, entries

MAGIC = b"FLQ1"
_PREFIX_BYTES = len(MAGIC) + 8


def check_body(header: Header, body: Bytes) -> None:
    """
    Compare a body with the length and digest in its header.

    Raises:
        MessageError: Another length or digest.
    """
    if len(body) != header.body_bytes:
        raise MessageError(f"body has {len(body)} bytes, its header has {header.body_bytes}")
    if body_digest(body) != header.body_digest:
        raise MessageError(f"body does not have the digest {header.body_digest} of its header")


def check_tensors(header: Header, manifest: Manifest) -> None:
    """
    Compare a header's tensors with the manifest's, not encoded: names, dtypes, shapes and layout.

    Raises:
        MessageError: Names the first tensor that differs, or the codec.
    """
    check_layout(header, "float32", entries(manifest))


def check_size(manifest: Manifest, most_bytes: int) -> None:
    """
    Refuse a model from elsewhere that is larger than the config allows.

    Raises:
        MessageError: It is larger; names the field.
    """
    if manifest.initial_nbytes > most_bytes:
        raise MessageError(
            f"a model of {manifest.initial_nbytes} bytes is more than {most_bytes}; raise model.max_bytes"
        )


def check_layout(
    header: Header, codec: str, expected: Sequence[TensorEntry], behind: int = 0
) -> None:
    """
    Refuse a header that has another codec, or other tensors than these, one after the other.

    Args:
        behind: Bytes behind the tensors: a base part.

    Raises:
        MessageError: Names the codec, or the first tensor that differs.
    """
    if header.codec != codec:
        raise MessageError(f"codec {header.codec}, the run wants {codec}")
    for mine, theirs in zip(expected, header.tensors, strict=False):
        if mine != theirs:
            raise MessageError(f"tensor {theirs.name!r} is {theirs[1:]}, the run has {mine}")
    if len(expected) != len(header.tensors):
        raise MessageError(f"{len(header.tensors)} tensors, the run has {len(expected)}")
    nbytes = sum(entry.nbytes for entry in expected) + behind
    if header.body_bytes != nbytes:
        raise MessageError(f"body of {header.body_bytes} bytes, the run's has {nbytes}")


# --- elements


def pack(header: Header, body: Bytes | None) -> bytes:
    """
    One element: what goes into the results list, or names a model.

    Args:
        header: Checked as ``unpack`` does, so that what is packed can be unpacked.
        body: The inline body; None when there is none or it travels in chunks.

    Raises:
        MessageError: A header field is out of range, or the body is not the header's.
    """
    head = pack_head(header)
    if (body is None) != (header.chunk_bytes > 0 or header.body_bytes == 0):
        raise MessageError("a body goes with chunk_bytes = 0, and chunks go without")
    if body is not None and len(body) != header.body_bytes:
        raise MessageError(f"body has {len(body)} bytes, its header has {header.body_bytes}")
    return head if body is None else b"".join((head, body))


def pack_head(header: Header) -> bytes:
    """
    An element without its body: prefix and header. Headers that differ in digests are as long.

    Raises:
        MessageError: A header field is out of range.
    """
    head = packed(header)
    prefix = MAGIC + header.round.to_bytes(4, "little") + len(head).to_bytes(4, "little")
    return prefix + head


def element_round(element: Bytes) -> int:
    """
    The round an element belongs to, from its prefix alone.

    Raises:
        MessageError: Not an element of this format.
    """
    if len(element) < _PREFIX_BYTES:
        raise MessageError(f"{len(element)} bytes are too few for an element")
    if bytes(element[: len(MAGIC)]) != MAGIC:
        raise MessageError(
            f"does not begin with {MAGIC!r}: no element, or of another format version"
        )
    return int.from_bytes(element[4:8], "little")


def unpack(
    element: Bytes,
    *,
    max_header_bytes: int = MAX_HEADER_BYTES,
    max_body_bytes: int,
    is_whole: bool = False,
) -> tuple[Header, memoryview]:
    """
    Decode an element up to its body, whose digest and numbers are left to ``check_body`` and on.

    Args:
        element: Bytes from anywhere.
        max_header_bytes: Cap of the header.
        max_body_bytes: Cap of the body, inline or in chunks.
        is_whole: The body follows the header, also of an element that travelled in chunks.

    Returns:
        The header, every field checked, and a view of the inline body (empty when there is none).

    Raises:
        MessageError: Anything is not as it must be; the message names the field.
    """
    number = element_round(element)
    header_bytes = int.from_bytes(element[8:12], "little")
    if header_bytes > max_header_bytes:
        raise MessageError(f"header has {header_bytes} bytes, more than {max_header_bytes}")
    whole = memoryview(element)
    if len(whole) < _PREFIX_BYTES + header_bytes:
        raise MessageError("header is cut off")
    body = whole[_PREFIX_BYTES + header_bytes :].toreadonly()
    if len(body) > max_body_bytes:
        raise MessageError(f"body has {len(body)} bytes, more than {max_body_bytes}")
    header = unpacked(whole[_PREFIX_BYTES : _PREFIX_BYTES + header_bytes])
    if header.round != number:
        raise MessageError(f"header is of round {header.round}, its prefix of round {number}")
    if header.body_bytes > max_body_bytes:
        raise MessageError(f"body has {header.body_bytes} bytes, more than {max_body_bytes}")
    inline_bytes = 0 if header.chunk_bytes and not is_whole else header.body_bytes
    if len(body) != inline_bytes:
        raise MessageError(f"{len(body)} bytes follow the header, not {inline_bytes}")
    return header, body


def initial_manifest(header: Header, most_bytes: int) -> Manifest:
    """
    The model of a version 0 that a client has made, once its header is what a run takes.

    Args:
        most_bytes: ``model.max_bytes``.

    Raises:
        MessageError: It is not; names the tensor or the field.
    """
    manifest = Manifest.from_json(header.manifest)
    behind = manifest.initial_nbytes - manifest.nbytes
    check_layout(header, "float32", entries(manifest), behind)
    check_size(manifest, most_bytes)
    return manifest
