"""
IDX, the file format of MNIST: a big-endian header, then unsigned bytes. No network here.

    2 zero bytes, 1 byte type (8: unsigned byte), 1 byte number of dimensions,
    each dimension as uint32, then the values in C order

Source:
    Yann LeCun, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_queue.errors import DataError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """
    The array in an IDX file, plain or gzip (recognised by content, not by name).

    Args:
        path: The file.
        dimensions: How many it must have: 1 for labels, 3 for images.

    Raises:
        DataError: It cannot be read, is truncated, or is something else; names the file.
    """
    content = _read(path)
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise DataError(
            str(path), f"is not an IDX file of bytes in {dimensions} dimensions", public=True
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            str(path),
            f"holds {len(content) - header} values, and its header announces {math.prod(shape)}; "
            "copy it again",
            public=True,
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def encode_idx(array: NDArray[np.uint8]) -> bytes:
    """The bytes of an IDX file (not compressed) that holds ``array``."""
    magic = bytes([0, 0, _UNSIGNED_BYTE, array.ndim])
    return magic + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise DataError(
            str(path), f"is damaged ({exc}); copy it again", public="is damaged; copy it again"
        ) from exc
    except OSError as exc:
        raise DataError(
            str(path),
            f"cannot be read: {exc.strerror or exc}",
            public=f"cannot be read: {os.strerror(exc.errno or 0)}",
        ) from exc
