"""Mutual TLS between real Envoys and real control planes: who gets in, what they get, and how certificates change."""

from __future__ import annotations

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
        return await secure.plane.metric("pointsman_feedback_total", kind="end") >= 3

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


@pytest.mark.parametrize("claim", ["cluster", "metadata"])
async def test_a_gateway_gets_nothing_of_another(secure: Secure, claim: str) -> None:
    """Its certificate is good, but it says it is a gateway that the certificate does not name."""
    certificate, key = secure.ca.gateway(["default/other"], trust_domain=DOMAIN)
    config = await secure.bootstrap(certificate, key, gateway="default/other")
    node = config["node"]
    if claim == "cluster":
        node["cluster"] = "default/main"
    else:
        node["metadata"]["gateway"] = "default/main"
    envoy = await secure.rails.gateway(config, ready=False)

    async def denied() -> bool:
        return await secure.plane.metric("pointsman_xds_denied_nodes_total") >= 2

    await eventually(denied, what="refused again and again")
    assert await envoy.listener_addresses() == {}
    assert "a gateway that its certificate does not name" in secure.plane.log
    assert '"allowed": ["default/other"]' in secure.plane.log
    assert await secure.plane.metric("pointsman_xds_responses_total") == 0


def put(target: Path, *sources: Path) -> None:
    """Put the content of `sources` in the place of `target`, in one step."""
    draft = target.with_suffix(".draft")
    draft.write_bytes(b"".join(source.read_bytes() for source in sources))
    draft.replace(target)


async def test_certificates_and_the_ca_are_exchanged_under_load(tmp_path: Path) -> None:
    """As one does it: trust both CAs, exchange the certificates, trust the new CA only. Nobody notices.

    Streams and connections are renewed all the time, so that what is in force is also in use.
    """
    old, new = TrialCa(tmp_path / "old"), TrialCa(tmp_path / "new")
    plane_files, gateway_files = tmp_path / "plane", tmp_path / "gateway-certs"
    trusted = (plane_files / "clients.pem", gateway_files / "ca.pem")
    for folder in (plane_files, gateway_files):
        folder.mkdir()

    def certify(ca: TrialCa) -> None:
        for folder, (certificate, key) in (
            (plane_files, ca.server()),
            (gateway_files, ca.gateway(["default/main"], trust_domain=DOMAIN)),
        ):
            put(folder / "tls.key", key)
            put(folder / "tls.crt", certificate)

    def trust(*cas: TrialCa) -> None:
        for target in trusted:
            put(target, *(ca.certificate for ca in cas))

    certify(old)
    trust(old)
    async with rails(tmp_path) as parts:
        plane = await parts.control_plane(
            parts.reserve(), "--tls-cert", plane_files / "tls.crt", "--tls-key", plane_files / "tls.key",
            "--tls-client-ca", trusted[0], "--stream-age", "1",
        )  # fmt: skip
        config = await parts.bootstrap(
            "--xds", plane.target, "--tls-cert", gateway_files / "tls.crt", "--tls-key", gateway_files / "tls.key",
            "--tls-ca", trusted[1],
        )  # fmt: skip
        envoy = await parts.gateway(config)

        async def in_force(reloads: int, certificates: int, cas: int) -> None:
            """Wait until the control plane has read new files so often, and Envoy holds that many new certificates."""

            async def reached() -> bool:
                seen["certificates"] |= await _serials(parts, envoy, "cert_chain")
                seen["cas"] = await _serials(parts, envoy, "ca_cert")
                loaded = await plane.metric("pointsman_tls_reloads_total", result="ok")
                return loaded >= reloads and len(seen["certificates"]) == certificates and len(seen["cas"]) == cas

            await eventually(reached, what=f"{reloads} reloads, {certificates} certificates, {cas} CAs: {seen}")

        async def renewed() -> None:
            """Wait until there were new connections to both services."""
            names = [f"cluster.pointsman-{service}.ssl.handshake" for service in ("xds", "picker")]
            before = await parts.stats(envoy)

            async def more() -> bool:
                now = await parts.stats(envoy)
                return all(now[name] > before[name] for name in names)

            await eventually(more, what="new connections")

        seen: dict[str, set[str]] = {"certificates": set(), "cas": set()}
        async with Load(parts.url, workers=8) as load:
            await load.progressed(40)
            await in_force(0, 1, 1)
            trust(old, new)
            await in_force(1, 1, 2)
            await renewed()
            certify(new)
            await in_force(2, 2, 2)
            await renewed()
            trust(new)
            await in_force(3, 2, 1)
            await renewed()
            picks = await plane.metric("pointsman_picks_total")
            await load.progressed(60)
            assert await plane.metric("pointsman_picks_total") > picks
        assert load.outcomes.failed == 0, load.outcomes.failures

        async def connected() -> bool:
            nodes = (await plane.status())["xds"]["nodes"]
            return [node["gateway"] for node in nodes] == ["default/main"]

        await eventually(connected, what="the gateway is connected")
        assert await plane.metric("pointsman_xds_denied_nodes_total") == 0
        assert await plane.metric("pointsman_tls_certificate_expiry_timestamp_seconds", file="server") > 0


async def _serials(parts: Rails, envoy: Envoy, kind: str) -> set[str]:
    """Serial numbers of the certificates that Envoy holds."""
    async with parts.session.get(f"{envoy.admin_url}/certs") as response:
        found = await response.json(content_type=None)
    return {part["serial_number"] for entry in found["certificates"] for part in entry.get(kind, [])}
