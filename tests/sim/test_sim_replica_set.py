"""The set of replicas changes while the others run; the network between client and replica takes its time."""

from __future__ import annotations

import asyncio

import aiohttp

from pointsman.sim.server import Simulation, simulation
from pointsman.sim.spec import ReplicaSpec, SimSpec


def address_of(replicas: list[dict[str, str]], name: str) -> str:
    return next(replica["address"] for replica in replicas if replica["name"] == name)


async def put(session: aiohttp.ClientSession, running: Simulation, body: object) -> tuple[int, object]:
    async with session.put(f"http://{running.ready.admin}/replicas", json=body) as response:
        return response.status, await response.json()


async def test_replicas_come_and_go_and_the_others_are_not_touched() -> None:
    spec = SimSpec(replicas=(ReplicaSpec(name="a"), ReplicaSpec(name="b")))
    async with simulation(spec) as running, aiohttp.ClientSession() as session:
        a = next(replica.address for replica in running.ready.replicas if replica.name == "a")
        async with session.post(f"http://{a}/v1/completions", json={"prompt": "x", "max_tokens": 1}) as response:
            assert response.status == 200
        status, replicas = await put(session, running, [{"name": "a"}, {"name": "c", "model": "other"}])
        assert status == 200
        assert isinstance(replicas, list)
        assert [replica["name"] for replica in replicas] == ["a", "c"]
        assert address_of(replicas, "a") == a
        assert replicas[0]["requests_completed"] == 1, "its counters went on"
        async with session.get(f"http://{address_of(replicas, 'c')}/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "other"


async def test_a_wrong_list_changes_nothing() -> None:
    spec = SimSpec(replicas=(ReplicaSpec(name="a"),))
    async with simulation(spec) as running, aiohttp.ClientSession() as session:
        for wrong in ([{"name": "x"}, {"name": "x"}], [{"nmae": "x"}], {"name": "a"}):
            status, answer = await put(session, running, wrong)
            assert status == 400, wrong
            assert isinstance(answer, dict)
            assert answer["error"]
        async with session.get(f"http://{running.ready.admin}/replicas") as response:
            assert [replica["name"] for replica in await response.json()] == ["a"]


async def test_the_network_delays_every_answer() -> None:
    """Not a timing test: an hour-long round trip simply has not ended when the near replica has answered twice."""
    spec = SimSpec(
        speed=1.0, replicas=(ReplicaSpec(name="near", rtt_ms=1), ReplicaSpec(name="far", rtt_ms=60_000, speed=0.01))
    )
    async with simulation(spec) as running, aiohttp.ClientSession() as session:
        urls = {replica.name: f"http://{replica.address}/metrics" for replica in running.ready.replicas}
        far = session.get(urls["far"])
        pending = asyncio.ensure_future(far)
        for _ in range(2):
            async with session.get(urls["near"]) as response:
                assert response.status == 200
        assert not pending.done()
        pending.cancel()
