"""JSON of others, as it may come: from a client, or from a file on a disk that lost some of it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode(content: bytes, kind: type[T]) -> T:
    """The content as a `kind`.

    Raises:
        msgspec.MsgspecError: it is none; also where it is no UTF-8, or nested too deep, of which msgspec lets Python's
            own errors through.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"JSON is malformed: no UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise msgspec.DecodeError("JSON is malformed: nested too deep") from error
