"""Entry gateways as a record for DNS: the manifest `DNSEndpoint` that external-dns reads.

Only the choice of the entry is left to DNS: every gateway reaches all sites. An entry is healthy when a proxy of it is
connected and has acknowledged its listeners. Pure: status in, manifest out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pointsman.core.errors import PointsmanError

Json = Any

MIN_TTL_S: Final = 5
MAX_TTL_S: Final = 30
"""Below, every request would ask DNS; above, clients stay for half a minute more at an entry that is gone."""


class DnsExportError(PointsmanError):
    """No record can be made: what DNS has is to stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A gateway and an address under which clients reach it; `why` it is no target, empty when it is one."""

    gateway: str
    address: str
    why: str = ""


def entries_of(status: Mapping[str, Json], addresses: Iterable[tuple[str, str]] = ()) -> tuple[Entry, ...]:
    """The entries of a status, as the admin API tells it.

    `addresses` are (gateway, address); without any those that listeners bind, but for loopback and wildcards.

    Raises:
        DnsExportError: an address is none, or belongs to no gateway.
    """
    known = {str(one["name"]): one for one in status["gateways"]}
    wanted = [(name if "/" in name else f"default/{name}", address) for name, address in addresses]
    for name, address in wanted:
        if name not in known:
            raise DnsExportError(f"{name} is no gateway: there is {', '.join(sorted(known)) or 'none'}")
        if _ip(address) is None:
            raise DnsExportError(f"{address!r} is not an IP address, such as 192.0.2.10")
    if not wanted:
        wanted = sorted({(name, address) for name, one in known.items() for address in _bound(one)})
    return tuple(Entry(gateway=name, address=address, why=_why_not(name, status["xds"])) for name, address in wanted)


def dns_endpoint(
    entries: Sequence[Entry], *, host: str, ttl_s: int, namespace: str = "default", identifier: str = ""
) -> dict[str, Any]:
    """The manifest for the healthy entries: one record for IPv4 and one for IPv6.

    Raises:
        DnsExportError: no entry is healthy. A record without targets would take away what may still work.
    """
    healthy = sorted({entry.address for entry in entries if not entry.why})
    if not healthy:
        reasons = (
            "; ".join(sorted({f"{entry.gateway}: {entry.why}" for entry in entries})) or "no gateway has an address"
        )
        raise DnsExportError(f"no entry is healthy ({reasons}); leave the record as it is")
    records = []
    for kind, version in (("A", 4), ("AAAA", 6)):
        targets = [address for address in healthy if ipaddress.ip_address(address).version == version]
        if targets:
            record = {"dnsName": host, "recordType": kind, "recordTTL": ttl_s, "targets": targets}
            records.append(record | ({"setIdentifier": identifier} if identifier else {}))
    return {
        "apiVersion": "externaldns.k8s.io/v1alpha1",
        "kind": "DNSEndpoint",
        "metadata": {"name": f"pointsman-{host.replace('*', 'any')}", "namespace": namespace},
        "spec": {"endpoints": records},
    }


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _bound(gateway: Mapping[str, Json]) -> list[str]:
    found = [str(one["address"]).rpartition(":")[0].strip("[]") for one in gateway["listeners"]]
    return [text for text in found if (ip := _ip(text)) and not (ip.is_loopback or ip.is_unspecified)]


def _why_not(gateway: str, xds: Mapping[str, Json]) -> str:
    nodes = [node for node in xds["nodes"] if node["gateway"] == gateway]
    if not nodes:
        return "no proxy is connected"
    return "" if any(_listens(node) for node in nodes) else "no proxy has acknowledged its listeners"


def _listens(node: Mapping[str, Json]) -> bool:
    refused = any(one["type"] == "LDS" for one in node["rejected"])
    return not refused and any(one["type"] == "LDS" and one["acked"] and not one["pending"] for one in node["types"])
