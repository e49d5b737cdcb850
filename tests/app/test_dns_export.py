"""The record of entry gateways: only those that serve, and never an empty one."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.app.dns_export import DnsExportError, dns_endpoint, entries_of


def node(gateway: str, *, acked: int = 1, pending: list[str] | None = None, rejected: str = "") -> dict[str, Any]:
    listeners = {"type": "LDS", "acked": acked, "pending": pending or []}
    return {"gateway": gateway, "types": [listeners], "rejected": [{"type": rejected}] if rejected else []}


def status(*nodes: dict[str, Any]) -> dict[str, Any]:
    gateways = [
        {"name": "default/east", "listeners": [{"address": "192.0.2.10:443"}, {"address": "192.0.2.10:80"}]},
        {"name": "default/west", "listeners": [{"address": "[2001:db8::1]:443"}, {"address": "127.0.0.1:80"}]},
    ]
    return {"gateways": gateways, "xds": {"nodes": list(nodes)}}


def test_healthy_entries_are_targets() -> None:
    found = entries_of(status(node("default/east"), node("default/west")))
    manifest = dns_endpoint(found, host="chat.example.com", ttl_s=20, identifier="a")
    assert manifest["kind"] == "DNSEndpoint"
    common = {"dnsName": "chat.example.com", "recordTTL": 20, "setIdentifier": "a"}
    assert manifest["spec"]["endpoints"] == [
        common | {"recordType": "A", "targets": ["192.0.2.10"]},
        common | {"recordType": "AAAA", "targets": ["2001:db8::1"]},
    ]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([], "no proxy is connected"),
        ([node("default/west", acked=0)], "no proxy has acknowledged its listeners"),
        ([node("default/west", pending=["default/west/x"])], "no proxy has acknowledged its listeners"),
        ([node("default/west", rejected="LDS")], "no proxy has acknowledged its listeners"),
    ],
)
def test_an_entry_that_does_not_serve_is_left_out(bad: list[dict[str, Any]], why: str) -> None:
    found = entries_of(status(node("default/east"), *bad))
    assert {entry.gateway: entry.why for entry in found} == {"default/east": "", "default/west": why}
    [record] = dns_endpoint(found, host="h.example", ttl_s=5)["spec"]["endpoints"]
    assert record["targets"] == ["192.0.2.10"]


def test_one_proxy_that_serves_is_enough() -> None:
    found = entries_of(status(node("default/east", acked=0), node("default/east", rejected="CDS")))
    assert [entry.why for entry in found if entry.gateway == "default/east"] == [""]


def test_without_a_healthy_entry_there_is_no_record() -> None:
    with pytest.raises(DnsExportError, match="leave the record as it is"):
        dns_endpoint(entries_of(status()), host="h.example", ttl_s=5)


def test_addresses_may_be_said() -> None:
    found = entries_of(status(node("default/east")), [("east", "198.51.100.7")])
    assert [(entry.gateway, entry.address, entry.why) for entry in found] == [("default/east", "198.51.100.7", "")]
    for wrong in (("east", "gw.example"), ("north", "198.51.100.7")):
        with pytest.raises(DnsExportError):
            entries_of(status(), [wrong])
