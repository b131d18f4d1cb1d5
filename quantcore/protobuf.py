"""Just enough of the protocol buffer wire format to read a SentencePiece model.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Payload = int | bytes
Message = dict[int, Payload]


def fields(data: bytes) -> Iterator[tuple[int, Payload]]:
    """Yield number and payload of each field: an int for varints, else the raw bytes.

    Raises `ValueError` for bytes that are no message.
    """
    place = 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        wire = tag & 7
        if wire == 0:
            value, place = _read_varint(data, place)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, place = _read_varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if place + length > len(data):
            raise ValueError(f"field {tag >> 3} ends after the file")
        yield tag >> 3, data[place : place + length]
        place += length


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(f"bad varint at byte {place}")


def varint(payload: Payload) -> int:
    """Return an integer field."""
    if not isinstance(payload, int):
        raise TypeError("expected an integer field")
    return payload


def raw(payload: Payload) -> bytes:
    """Return a field of bytes."""
    if not isinstance(payload, bytes):
        raise TypeError("expected a field of bytes")
    return payload


def float32(payload: Payload | None) -> float:
    """Return a float field; absent is 0."""
    if payload is None:
        return 0.0
    if not isinstance(payload, bytes):
        raise TypeError("expected a float field")
    return float(struct.unpack("<f", payload)[0])
