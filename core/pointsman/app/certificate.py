"""Reads from X.509 certificates the one thing that the standard library does not tell of our own: when they end.

Python's `ssl` checks signatures and keys; it shows the fields of a peer's certificate only, after a handshake. The
validity stands at a fixed place of the DER encoding (RFC 5280, section 4.1), so few lines find it.
"""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


def certificates(pem: bytes) -> list[bytes]:
    """The certificates in a PEM file, in order, as DER; text around them is allowed.

    Raises:
        ValueError: a block that is not base64.
    """
    return [ssl.PEM_cert_to_DER_cert(block.decode("ascii")) for block in _PEM.findall(pem)]


def validity(der: bytes) -> tuple[float, float]:
    """From when and until when a certificate is valid, in seconds since the epoch.

    Raises:
        ValueError: this is no certificate.
    """
    certificate = _Reader(der).inside(_SEQUENCE).inside(_SEQUENCE)
    if certificate.tag() == _VERSION:
        certificate.skip()
    for _ in range(3):  # serial number, signature algorithm, issuer
        certificate.skip()
    period = certificate.inside(_SEQUENCE)
    return period.time(), period.time()


class _Reader:
    """Walks over DER elements: tag, length, content."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def tag(self) -> int:
        return self._data[self._at] if self._at < len(self._data) else -1

    def skip(self) -> bytes:
        """Go past one element; returns its content."""
        if self._at + 2 > len(self._data):
            raise ValueError("a certificate ends too early")
        start, length = self._at + 2, self._data[self._at + 1]
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(self._data[start : start + size], "big")
            start += size
        if start + length > len(self._data):
            raise ValueError("a certificate ends too early")
        self._at = start + length
        return self._data[start : self._at]

    def inside(self, tag: int) -> _Reader:
        """A reader for the content of the element here."""
        if self.tag() != tag:
            raise ValueError("this is not the encoding of a certificate")
        return _Reader(self.skip())

    def time(self) -> float:
        tag = self.tag()
        if tag not in {_UTC_TIME, _GENERALIZED_TIME}:
            raise ValueError("a certificate without dates")
        text = self.skip().decode("ascii")
        if tag == _UTC_TIME:
            text = (
                "19" if text >= "50" else "20"
            ) + text  # RFC 5280: two-digit years from 50 belong to the last century
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
