"""Mutual TLS between real Envoys and real control planes: who gets in, what they get, and how certificates change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pointsman.app.envoy import Envoy
from pointsman.app.trial_certificates import TrialCa
from support.load import Load, Outcomes, ask, chat_body
from support.planes import Plane, Rails, rails
from support.waiting import eventually

pytestmark = pytest.mark.e2e

DOMAIN = "test"


@dataclass
class Secure:
    """A CA with a control plane's certificate, and the control plane."""

    rails: Rails
    ca: TrialCa
    plane: Plane

    async def bootstrap(self, certificate: Path, key: Path, ca: Path | None = None, **settings: Any) -> dict[str, Any]:
        return await self.rails.bootstrap(
            "--xds", self.plane.target, "--tls-cert", certificate, "--tls-key", key,
            "--tls-ca", ca or self.ca.certificate, **settings,
        )  # fmt: skip

    async def gateway(self) -> Envoy:
        certificate, key = self.ca.gateway(["default/main"], trust_domain=DOMAIN)
        return await self.rails.gateway(await self.bootstrap(certificate, key))


def tls_words(ca: TrialCa) -> list[str | Path]:
    folder = ca.folder
    return ["--tls-cert", folder / "server.pem", "--tls-key", folder / "server.key", "--tls-client-ca", ca.certificate]


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Secure]:
    ca = TrialCa(tmp_path / "certs")
    ca.server()
    async with rails(tmp_path) as parts:
        yield Secure(parts, ca, await parts.control_plane(parts.reserve(), *tls_words(ca)))


async def never_configured(rails: Rails, envoy: Envoy, counter: str, *, at_least: int = 2) -> None:
    """Wait until Envoy has tried some times in vain; it has no listener then."""

    async def tried() -> bool:
        return (await rails.stats(envoy)).get(counter, 0) >= at_least

    await eventually(tried, what=counter)
    assert await envoy.listener_addresses() == {}
    assert (await rails.stats(envoy))["cluster_manager.cds.update_success"] == 0


async def test_a_streamed_answer_is_picked_over_mutual_tls(secure: Secure) -> None:
    envoy = await secure.gateway()
    outcomes = Outcomes()
    for _ in range(3):
        await ask(secure.rails.session, secure.rails.url, chat_body("all aboard", stream=True), outcomes)
    assert outcomes.ok == 3, outcomes.failures
    assert await secure.plane.metric("pointsman_picks_total") == 3
    stats = await secure.rails.stats(envoy)
    for cluster in ("pointsman-xds", "pointsman-picker"):
        assert stats[f"cluster.{cluster}.ssl.handshake"] > 0

    async def heard() -> bool:
        return await secure.plane.metric("pointsman_feedback_entries_total") >= 3

    await eventually(heard, what="access logs arrive, too")
    assert (await secure.plane.status())["configuration"]["tls"]["accepted"] is True


async def test_a_certificate_of_another_ca_is_refused(secure: Secure, tmp_path: Path) -> None:
    stranger = TrialCa(tmp_path / "strangers")
    certificate, key = stranger.gateway(["default/main"], trust_domain=DOMAIN)
    envoy = await secure.rails.gateway(await secure.bootstrap(certificate, key), ready=False)
    await never_configured(secure.rails, envoy, "cluster.pointsman-xds.upstream_cx_destroy_remote")
    assert (await secure.plane.status())["xds"]["nodes"] == []


async def test_without_a_certificate_nobody_gets_in(secure: Secure) -> None:
    certificate, key = secure.ca.gateway(["default/main"], trust_domain=DOMAIN)
    config = await secure.bootstrap(certificate, key)
    socket = config["static_resources"]["clusters"][0]["transport_socket"]["typed_config"]
    del socket["common_tls_context"]["tls_certificate_sds_secret_configs"]
    envoy = await secure.rails.gateway(config, ready=False)
    await never_configured(secure.rails, envoy, "cluster.pointsman-xds.upstream_cx_destroy_remote")
    assert (await secure.plane.status())["xds"]["nodes"] == []


async def test_plaintext_gets_nowhere(secure: Secure) -> None:
    envoy = await secure.rails.gateway(await secure.rails.bootstrap("--xds", secure.plane.target), ready=False)
    await never_configured(secure.rails, envoy, "cluster.pointsman-xds.upstream_cx_destroy_remote")


async def test_a_gateway_does_not_talk_to_a_control_plane_of_another_ca_or_name(secure: Secure, tmp_path: Path) -> None:
    stranger = TrialCa(tmp_path / "strangers")
    certificate, key = secure.ca.gateway(["default/main"], trust_domain=DOMAIN)
    envoy = await secure.rails.gateway(await secure.bootstrap(certificate, key, stranger.certificate), ready=False)
    await never_configured(secure.rails, envoy, "cluster.pointsman-xds.ssl.fail_verify_error")

    config = await secure.rails.bootstrap(
        "--xds", secure.plane.target, "--tls-cert", certificate, "--tls-key", key,
        "--tls-ca", secure.ca.certificate, "--server-name", "another.name",
    )  # fmt: skip
    envoy = await secure.rails.gateway(config, ready=False)
    await never_configured(secure.rails, envoy, "cluster.pointsman-xds.ssl.fail_verify_san")


@pytest.mark.parametrize("claim", ["cluster", "metadata", "id"])
async def test_a_gateway_gets_nothing_of_another(secure: Secure, claim: str) -> None:
    """Its certificate is good, but it says it is a gateway that the certificate does not name."""
    certificate, key = secure.ca.gateway(["default/other"], trust_domain=DOMAIN)
    config = await secure.bootstrap(certificate, key, gateway="default/other")
    node = config["node"]
    if claim == "cluster":
        node["cluster"] = "default/main"
    elif claim == "metadata":
        node["metadata"]["gateway"] = "default/main"
    else:
        node["cluster"], node["id"] = "", "default/main"
    envoy = await secure.rails.gateway(config, ready=False)

    async def denied() -> bool:
        return await secure.plane.metric("pointsman_xds_denied_nodes_total") >= 2

    await eventually(denied, what="refused again and again")
    assert await envoy.listener_addresses() == {}
    assert "a gateway that its certificate does not name" in secure.plane.log
    assert '"allowed": ["default/other"]' in secure.plane.log
    # Envoy has its second claim for a stand-in in no case: nothing at all is sent.
    assert await secure.plane.metric("pointsman_xds_responses_total") == 0


async def test_certificates_are_exchanged_under_load(secure: Secure) -> None:
    """Server, client and even the CA: nobody notices, and the next connection uses the new ones."""
    envoy = await secure.gateway()
    serials = await _serials(envoy)
    shown = await _server_certificate(secure.plane, secure.ca)
    async with Load(secure.rails.url, workers=8) as load:
        await load.progressed(60)
        secure.ca.server()
        secure.ca.gateway(["default/main"], trust_domain=DOMAIN)

        async def exchanged() -> bool:
            loaded = await secure.plane.metric("pointsman_tls_reloads_total", result="ok")
            return bool(loaded) and not (serials & await _serials(envoy))

        await eventually(exchanged, what="both sides have the new certificates")
        assert await _server_certificate(secure.plane, secure.ca) != shown
        # New connections everywhere: the old ones are ended by the control plane's restart.
        await load.progressed(60)
        before = (await secure.rails.stats(envoy))["cluster.pointsman-picker.ssl.handshake"]
        picks = await secure.plane.metric("pointsman_picks_total")
        async with secure.rails.session.post(f"{envoy.admin_url}/reset_counters"):
            pass
        await load.progressed(60)
        assert await secure.plane.metric("pointsman_picks_total") > picks
        assert before > 0
    assert load.outcomes.failed == 0, load.outcomes.failures


async def _serials(envoy: Envoy) -> set[str]:
    """Serial numbers of the client certificates that Envoy holds."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"{envoy.admin_url}/certs") as response:
        found = await response.json(content_type=None)
    return {chain["serial_number"] for entry in found["certificates"] for chain in entry.get("cert_chain", [])}


async def _server_certificate(plane: Plane, ca: TrialCa) -> bytes:
    """What the control plane shows to a new connection."""
    address, _, port = plane.target.rpartition(":")
    context = ssl.create_default_context(cafile=str(ca.certificate))
    context.check_hostname = False
    context.load_cert_chain(*ca.client("prober", "prober"))
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(address, int(port), ssl=context)
    try:
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown
    finally:
        writer.close()
