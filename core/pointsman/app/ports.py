"""Checks addresses before anything is started, so that a taken port is told with its name and its setting."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from pointsman.core.errors import PointsmanError


class PortError(PointsmanError):
    """An address cannot be listened on; the message names it and the setting that changes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An address that something is going to listen on. `setting` is where the user changes it; port 0 is any."""

    address: str
    port: int
    purpose: str
    setting: str


def check_free(wanted: Iterable[Wanted]) -> None:
    """Bind each address once and let it go.

    Envoy and gRPC bind with SO_REUSEPORT: without this check two of us on one port would silently share the traffic.

    Raises:
        PortError: naming every address that is taken or not ours.
    """
    problems = []
    seen: dict[tuple[str, int], Wanted] = {}
    for want in wanted:
        if want.port == 0:
            continue
        if other := seen.get((want.address, want.port)):
            problems.append(f"port {want.port} is wanted twice: by {other.purpose} and by {want.purpose}")
            continue
        seen[(want.address, want.port)] = want
        if reason := _refusal(want.address, want.port):
            problems.append(f"{want.purpose} cannot listen on {want.address}:{want.port}: {reason}; set {want.setting}")
    if problems:
        raise PortError("\n".join(problems))


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address` (an IP literal or `localhost`)."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_wildcard(address: str) -> bool:
    """Whether `address` means every address of this machine, so that nobody can connect to it by that name."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


def _refusal(address: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without it a port whose last connections are in TIME_WAIT would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            known = {
                errno.EADDRINUSE: f"port {port} is in use by another process",
                errno.EACCES: f"port {port} needs privileges",
                errno.EADDRNOTAVAIL: f"{address} is not an address of this machine",
            }
            return known.get(error.errno or 0, error.strerror or str(error))
    return ""
