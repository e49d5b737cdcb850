"""HTTPS of the admin server, which follows its files: our certificate, and who may sign those of clients."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Serve with this certificate.

    Raises:
        ssl.SSLError, OSError, ValueError: the files are none that could be used.
    """
    # Without a password function OpenSSL would ask for the passphrase of an encrypted key on the terminal.
    context.load_cert_chain(certificate, key, password=lambda: "")


class AdminTls:
    """The context of a listening server. `client_ca`: PEM; with it a client may show a certificate that it signed, and
    one of somebody else ends the handshake. A client that shows none goes on, and is told what it lacks in HTTP.

    Raises (also from `renew`):
        ssl.SSLError, OSError, ValueError: the files are none that could be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: bytes = b"") -> None:
        self._pair = certificate, key
        self._client_ca = client_ca
        self._current = self._context(client_ca)
        self.listening = self._context(client_ca)
        self.listening.sni_callback = self._choose

    @property
    def asks(self) -> bool:
        """Whether clients may show a certificate."""
        return bool(self._client_ca)

    def renew(self, client_ca: bytes = b"") -> None:
        """Take over what the files say now."""
        load_pair(self.listening, *self._pair)
        if client_ca == self._client_ca:
            load_pair(self._current, *self._pair)
        else:  # a context only ever learns of more CAs, and whom the old one let in is known by it
            self._current, self._client_ca = self._context(client_ca), client_ca

    def verified(self, connection: ssl.SSLObject | None) -> bool:
        """Whether the client's certificate was checked against the CA that is in force now."""
        return connection is not None and bool(self._client_ca) and connection.context is self._current

    def _context(self, client_ca: bytes) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        load_pair(made, *self._pair)
        if client_ca:
            made.load_verify_locations(cadata=client_ca.decode("ascii"))
            made.verify_mode = ssl.CERT_OPTIONAL
            # A resumed session brings the identity of the first one along, whatever has become of its certificate.
            made.options |= ssl.OP_NO_TICKET
            made.num_tickets = 0
        return made

    def _choose(self, connection: Any, _: str | None, __: ssl.SSLContext) -> None:
        """Called in each handshake, also of clients that name no host."""
        connection.context = self._current
