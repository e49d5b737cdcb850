"""A site behind its gateway: two control planes, two real Envoys, TLS with SNI between them.

Site "bee" is a whole fleet of its own. The fleet at home knows it by the address of its gateway only; a third Envoy
stands before that and ends TLS, and takes no name but one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pointsman.app.trial_certificates import TrialCa
from support.envoy import running_envoy
from support.fleet import POINTSMAN, Fleet, Layout, Loopback, running_fleet
from support.load import Load, Outcomes, ask, chat_body
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.story]

SNI = "gw.bee.test"
ALL = {"x-fleet": "all"}
FAR = {"x-fleet": "far"}
TRAVELLED = {"x-pointsman-hops": "1"}
LOCAL_REQUESTS = "cluster.default/all@~local.upstream_rq_total"
"""At home: requests that came through the gateway of the other site."""
HOME = Layout(stable={"us-east": 1}, canary={"us-east": 1})


@dataclass
class Pair:
    """The fleet at home and the one at the other site; `front` is the port that speaks TLS before its gateway."""

    home: Fleet
    bee: Fleet

    async def received(self) -> tuple[int, int]:
        """Requests that the replicas at home and those of the other site have got, by their own count."""
        counts = [
            sum(int(one["requests_received"]) for one in (await f.replicas()).values()) for f in (self.home, self.bee)
        ]
        return counts[0], counts[1]

    async def some(self, fleet: Fleet, headers: dict[str, str], count: int = 10) -> Outcomes:
        outcomes = Outcomes()
        for number in range(count):
            await ask(fleet.session, fleet.url, chat_body(f"{number} of {headers}"), outcomes, headers)
        return outcomes


def site(name: str, gateway: dict[str, Any], metrics: str) -> dict[str, Any]:
    spec = {"gateway": gateway, "metrics": {"url": f"{metrics}/metrics"}}
    return {"apiVersion": "pointsman.dev/v1alpha1", "kind": "Site", "metadata": {"name": name}, "spec": spec}


def fleet_of(name: str, *members: tuple[str, int]) -> dict[str, Any]:
    spec = {
        "model": "llama-3-8b",
        "poolRef": {"name": "stable"},
        "members": [{"site": s, "tier": t} for s, t in members],
    }
    return {"apiVersion": "pointsman.dev/v1alpha1", "kind": "InferenceFleet", "metadata": {"name": name}, "spec": spec}


def rule(value: str) -> dict[str, Any]:
    return {
        "matches": [{"headers": [{"name": "x-fleet", "value": value}]}],
        "backendRefs": [{"group": "pointsman.dev", "kind": "InferenceFleet", "name": value}],
    }


def tls_front(ca: TrialCa, address: str, port: int, upstream: tuple[str, int]) -> dict[str, Any]:
    """An Envoy that ends TLS for one name and passes the bytes on."""
    certificate, key = ca.server([SNI], name="front")
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    chain = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
    socket = {"socket_address": {"address": address, "port_value": port}}
    behind = {"socket_address": {"address": upstream[0], "port_value": upstream[1]}}
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "front",
        "cluster": "behind",
    }
    inspector = {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}
    filter_chain = {
        "filter_chain_match": {"server_names": [SNI]},
        "transport_socket": {
            "name": "tls",
            "typed_config": {"@type": tls, "common_tls_context": {"tls_certificates": [chain]}},
        },
        "filters": [{"name": "tcp", "typed_config": proxy}],
    }
    listener = {
        "name": "front",
        "address": socket,
        "listener_filters": [{"name": "inspector", "typed_config": inspector}],
        "filter_chains": [filter_chain],
    }
    assignment = {
        "cluster_name": "behind",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": behind}}]}],
    }
    cluster = {"name": "behind", "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}
    return {
        "node": {"id": "front", "cluster": "front"},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


@asynccontextmanager
async def pair(folder: Path, *, probe: bool) -> AsyncIterator[Pair]:
    """Both sites. At home the fleet "all" prefers the other site, there it prefers its own; each has the other behind
    its gateway."""
    net = Loopback()
    ca = TrialCa(folder / "ca")
    async with AsyncExitStack() as stack:
        bee = await stack.enter_async_context(running_fleet(folder / "bee", HOME))
        address = net.address()
        port = net.free_port(address)
        upstream = bee.manifests.gateway_address, bee.manifests.http_port
        await stack.enter_async_context(running_envoy(tls_front(ca, address, port, upstream)))
        tls = {"sni": SNI, "caFile": str(ca.certificate)}
        gateway = {"address": address, "port": port, "tls": tls, "probe": probe}
        documents = [site("bee", gateway, bee.admin), fleet_of("all", ("bee", 0), ("us-east", 1))]
        home = await stack.enter_async_context(
            running_fleet(folder / "home", replace(HOME, rules=[rule("all")], documents=documents))
        )
        there = {"address": home.manifests.gateway_address, "port": home.manifests.http_port, "probe": probe}
        documents = [
            site("home", there, home.admin),
            fleet_of("all", ("us-east", 0), ("home", 1)),
            fleet_of("far", ("home", 0)),
        ]
        bee.manifests.write(replace(HOME, rules=[rule("all"), rule("far")], documents=documents))
        found = Pair(home, bee)

        async def both_serve() -> bool:
            first = await found.some(home, ALL, 1)
            second = await found.some(bee, FAR | TRAVELLED, 1)
            return first.ok == 1 and any("508" in kind for kind in second.failures)

        await eventually(both_serve, what="both sites have their configuration")
        yield found


async def test_its_own_picker_picks_there_and_when_it_dies_requests_come_home(tmp_path: Path) -> None:
    async with pair(tmp_path, probe=True) as sites:
        home, bee = await sites.received()
        outcomes = await sites.some(sites.home, ALL)
        assert outcomes.failed == 0, outcomes.failures
        assert await sites.received() == (home, bee + 10), "all of them go to the other site, over TLS with its name"
        picks = (await sites.bee.get(f"{sites.bee.admin}/api/v1/picks"))["picks"]
        pools = Counter(one["pool"] for one in picks)
        assert pools["default/all@~local"] >= 10
        assert "default/all" not in pools
        async with Load(sites.home.url, workers=4, headers=ALL) as load:
            await load.progressed(20)
            os.kill(sites.bee.envoy.child.pid, signal.SIGKILL)
            await load.progressed(100)
        assert load.outcomes.failed == 0, load.outcomes.failures
        assert (await sites.received())[0] > home
        code, output, _ = await exported(sites.home)
        assert (code, json.loads(output)["spec"]["endpoints"][0]["targets"]) == (0, ["192.0.2.10"])

        async def gone() -> bool:
            code, output, errors = await exported(sites.bee)
            return code == 1 and not output and "no proxy is connected" in errors

        await eventually(gone, what="the entry whose gateway is dead is no target any more")


async def exported(fleet: Fleet) -> tuple[int, str, str]:
    """Exit code, output and errors of `pointsman dns export` for the gateway of a fleet."""
    process = await asyncio.create_subprocess_exec(
        str(POINTSMAN), "dns", "export", "--admin", fleet.admin, "--host", "chat.example.com",
        "--entry", "default/main=192.0.2.10", "-o", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_what_came_through_a_gateway_goes_to_no_other(tmp_path: Path) -> None:
    async with pair(tmp_path, probe=False) as sites:
        async with sites.bee.session.post(
            f"{sites.bee.url}/v1/chat/completions", json=chat_body("far"), headers=FAR | TRAVELLED
        ) as response:
            assert (response.status, response.headers["x-pointsman-reason"]) == (508, "loop")
        home, _ = await sites.received()
        outcomes = await sites.some(sites.bee, FAR)
        assert outcomes.failed == 0, outcomes.failures
        assert (await sites.received())[0] == home + 10, "who came through none is sent on"
        assert await sites.home.envoy_stats(LOCAL_REQUESTS) == {LOCAL_REQUESTS: 0}
        await asyncio.gather(*(sites.bee.set_faults(name, {"refuse": True}) for name in await sites.bee.replicas()))
        outcomes = await sites.some(sites.home, ALL)
        assert outcomes.failed == 0, outcomes.failures
        assert await sites.home.envoy_stats(LOCAL_REQUESTS) == {LOCAL_REQUESTS: 0}, "none came back"
        lost = await sites.some(sites.bee, ALL | TRAVELLED)
        assert lost.ok == 0
        assert {kind.split()[0] for kind in lost.failures} == {"503"}
        again = await sites.some(sites.bee, ALL)
        assert again.failed == 0, again.failures
        assert (await sites.home.envoy_stats(LOCAL_REQUESTS))[LOCAL_REQUESTS] >= 10, "they do come when they may"
