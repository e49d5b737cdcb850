"""Mutual TLS where picks are made by workers, and between the pickers of two control planes."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from pointsman.app.trial_certificates import TrialCa
from support.load import Outcomes, ask, chat_body
from support.planes import Plane, rails
from support.waiting import eventually

pytestmark = pytest.mark.e2e


async def in_flight(plane: Plane) -> float:
    """Requests in flight at all endpoints, as this control plane knows it."""
    pools: list[dict[str, Any]] = (await plane.status())["pools"]
    return sum(endpoint["in_flight"] or 0 for pool in pools for site in pool["sites"] for endpoint in site["endpoints"])


def worker_target(plane: Plane) -> tuple[str, int]:
    lines = [json.loads(line) for line in plane.log.splitlines() if "picker worker ready" in line]
    return plane.target.rpartition(":")[0], lines[-1]["port"]


async def test_workers_serve_gateways_and_pickers_share_load(tmp_path: Path) -> None:
    ca, stranger = TrialCa(tmp_path / "certs"), TrialCa(tmp_path / "other")
    certificate, key = ca.server()
    foreign_certificate, foreign_key = stranger.server()
    pair = ca.gateway(["default/main"], trust_domain="test")
    async with rails(tmp_path, speed=1) as parts:
        targets = [parts.reserve() for _ in range(3)]
        words = ["--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", ca.certificate]
        first = await parts.control_plane(targets[0], *words, "--picker-workers", "1")
        second = await parts.control_plane(targets[1], *words, "--picker-peer", targets[0])
        # It trusts the first one's CA, but nobody trusts its own.
        third = await parts.control_plane(
            targets[2], "--tls-cert", foreign_certificate, "--tls-key", foreign_key, "--tls-client-ca", ca.certificate,
            "--picker-peer", targets[0],
        )  # fmt: skip
        envoy = await parts.gateway(
            await parts.bootstrap(
                "--xds", targets[0], "--tls-cert", pair[0], "--tls-key", pair[1], "--tls-ca", ca.certificate
            )
        )
        slow = asyncio.create_task(
            ask(parts.session, parts.url, chat_body("tell it all", stream=True, max_tokens=4_000), Outcomes())
        )
        try:
            await eventually(lambda: shares(second), what="the second control plane hears of the first one's load")
            assert await in_flight(first) == 1
            assert await in_flight(third) == 0
            await eventually(lambda: "picker peer lost" in third.log, what="the third one is refused")
            assert "picker peer lost" not in second.log
        finally:
            slow.cancel()
        assert (await parts.stats(envoy))["cluster.pointsman-picker.ssl.handshake"] > 0

        target = worker_target(first)
        before = await asyncio.to_thread(ssl.get_server_certificate, target)
        ca.server()
        await eventually(lambda: presents_another(target, before), what="the worker has the new certificate")
        outcomes = Outcomes()
        await ask(parts.session, parts.url, chat_body("still here"), outcomes)
        assert outcomes.ok == 1, outcomes.failures


async def shares(plane: Plane) -> bool:
    return await in_flight(plane) == 1


async def presents_another(target: tuple[str, int], before: str) -> bool:
    return await asyncio.to_thread(ssl.get_server_certificate, target) != before
