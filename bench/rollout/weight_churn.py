"""Weights change eleven times a second while requests run and streams are open: does anybody notice?

    python bench/rollout/weight_churn.py [--requests 20000] [--rate 700]

Chat completions, each picked by our picker as in production; half of them carry the header of a variant, half another
value of it. SSE and gRPC streams are open from before the first change to after the last. Each change goes through
the admin API and waits for Envoy's acknowledgement. The endpoints answer at once: it is the gateway, the picker and the
control plane that are measured. Ends with 1 if a request failed, a header request went elsewhere, another one went to
the variant, a stream broke, there were fewer than 100 changes in some 10 s, or fewer than 500 requests a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import aiohttp
import grpc
from plain_http import Endpoint, Kind, Load, answer, clients
from stage import MODEL, PORT, VARIANT, Stage, addresses, own_network, stage

sys.path.append(str(Path(__file__).parents[1] / "xds"))
from processes import Child, child, cpu_s, machine  # a neighbour's helper

CONNECTIONS: Final = 32
SSE_STREAMS: Final = 10
GRPC_STREAMS: Final = 2
CHANGES_PER_S: Final = 11
"""One more than is wanted: 10 a second are 99 in some spans of 10 s, whose edges fall between two."""
EVENT_S: Final = 0.2
METHOD: Final = "/bench.Echo/Chat"
BAR_PER_S: Final = 500
BAR_SPAN_S: Final = 10.0
BAR_CHANGES: Final = 100
"""In any span of `BAR_SPAN_S`."""
OPEN_S: Final = 60.0
"""Until every stream must be open; the grpc pool has no probe that a start could wait for."""
PATH: Final = "/v1/chat/completions"
STREAMED: Final = b'"stream": true'
ARMS: Final = frozenset({"canary", "stable", "exp"})

Outcomes = dict[tuple[str, str], int]


def upstreams(pipe: Connection, network: str) -> None:
    """Endpoints of all pools that say which pool they are of, stream events on demand, and echo gRPC messages."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        async def stream(transport: asyncio.Transport) -> None:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            transport.write(head)
            number = 0
            while not stop.is_set():
                transport.write(_chunk(f"data: {number}\n\n"))
                number += 1
                await asyncio.sleep(EVENT_S)
            transport.write(_chunk(f"data: {number}\n\ndata: [DONE]\n\n") + b"0\r\n\r\n")

        def endpoint(pool: str) -> Endpoint:
            body = json.dumps(
                {"object": "chat.completion", "model": MODEL, "choices": [{"message": {"content": "ok"}}]}
            )
            return Endpoint(answer(body.encode(), x_arm=pool), STREAMED, stream, tasks)

        for pool in sorted(ARMS):
            for address in addresses(network, pool, 2):
                await loop.create_server(lambda pool=pool: endpoint(pool), address, PORT)  # type: ignore[misc]
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(_echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Chat": handler}),))
        server.add_insecure_port(f"{addresses(network, 'grpc', 1)[0]}:{PORT}")
        await server.start()
        pipe.send("ready")
        loop.add_reader(pipe.fileno(), stop.set)
        await stop.wait()
        loop.remove_reader(pipe.fileno())
        await asyncio.Event().wait()

    asyncio.run(main())


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


async def _echo(messages: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message


def kinds() -> tuple[Kind, Kind]:
    """The same question of a thousand bytes, for the variant and not."""
    question = "and what does the timetable say of the 7.40 to the coast? " * 14
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": f"No. %d: {question}"}]}
    return (
        Kind(name="variant", path=PATH, headers=f"{VARIANT[0]}: {VARIANT[1]}\r\n", body=json.dumps(body)),
        Kind(name="other", path=PATH, headers=f"{VARIANT[0]}: {VARIANT[1]}x\r\n", body=json.dumps(body)),
    )


async def read_events(place: Stage, opened: asyncio.Semaphore) -> str:
    """What is wrong with an SSE stream; empty if every event came, in order, to the end."""
    body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "go on"}]})
    headers = {"content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=30)
    events: list[str] = []
    try:
        async with place.session.post(f"{place.url}{PATH}", data=body, headers=headers, timeout=timeout) as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    events.append(line[6:].decode().strip())
                    if len(events) == 1:
                        opened.release()
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__} after {len(events)} events"
    whole = [*map(str, range(len(events) - 1)), "[DONE]"]
    return "" if events == whole else f"ends with {events[-1:]} after {len(events)} events"


async def talk(place: Stage, stop: asyncio.Event, opened: asyncio.Semaphore) -> str:
    """What is wrong with a bidirectional gRPC stream; empty if every message came back and it ended with OK.

    It is opened again until its first message came back: the gateway may not know yet that the endpoint is there.
    """
    async with grpc.aio.insecure_channel(place.grpc_target) as channel:
        number = 0
        while True:
            call = channel.stream_stream(METHOD)()
            try:
                while number == 0 or not stop.is_set():
                    await call.write(b"%d" % number)
                    if await call.read() != b"%d" % number:
                        return f"message {number} did not come back"
                    if number == 0:
                        opened.release()
                    number += 1
                    await asyncio.sleep(EVENT_S)
                await call.done_writing()
                end = await call.read()
            except grpc.aio.AioRpcError as error:
                if number == 0:
                    await asyncio.sleep(EVENT_S)
                    continue
                return f"{error.code().name} after {number} messages"
            return "" if end is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK else "it did not end with OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """When (monotonic seconds) a change was in force everywhere, and how long after the change that was."""

    at_s: float
    acked_ms: float


async def change(place: Stage, canary: int) -> Change:
    """Set the weights and wait for the gateway.

    Raises:
        SystemExit: it was refused, or not acknowledged.
    """
    body = {"weights": {"canary": canary, "stable": 100 - canary}, "wait": True}
    async with place.session.put(f"{place.admin}/api/v1/weights/chat/split", json=body) as response:
        told = await response.json()
    acks = told.get("acks", [])
    if not acks or not all(one["done"] for one in acks):
        raise SystemExit(f"a change was not acknowledged: {told}")
    acked_ms = float(max(ms for one in acks for ms in one["acked_ms"].values()))
    return Change(at_s=time.monotonic(), acked_ms=acked_ms)


async def churn(place: Stage, done: asyncio.Event) -> list[Change]:
    """Another split, `CHANGES_PER_S` times a second, until told to stop; one that took long is made up for."""
    loop = asyncio.get_running_loop()
    due_s, changes = loop.time(), []
    while not done.is_set():
        changes.append(await change(place, len(changes) * 37 % 101))
        due_s += 1 / CHANGES_PER_S
        await asyncio.sleep(due_s - loop.time())
    return changes


def fewest_in_span(changes: list[Change], began_s: float, ended_s: float) -> int | None:
    """The fewest changes in any `BAR_SPAN_S` of the time; None if it was shorter."""
    starts = [began_s, *(one.at_s for one in changes)]
    within = [start for start in starts if start + BAR_SPAN_S <= ended_s]
    counts = [sum(start < one.at_s <= start + BAR_SPAN_S for one in changes) for start in within]
    return min(counts, default=None)


async def picks(place: Stage) -> int:
    """Answers that our picker has given so far."""
    async with place.session.get(f"{place.admin}/metrics") as response:
        lines = (await response.text()).splitlines()
    return round(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("pointsman_picks_total{")))


def cpu(place: Stage, others: dict[str, Child]) -> dict[str, float]:
    """CPU seconds of everybody so far."""
    children = Path(f"/proc/{place.pid}/task/{place.pid}/children").read_text().split()
    used = {"control plane and picker": cpu_s(place.pid), "Envoy": sum(cpu_s(int(pid)) for pid in children)}
    return used | {name: cpu_s(one.pid) for name, one in others.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of it. `picked` answers of the picker, `used_s` CPU seconds by process, while requests were sent."""

    outcomes: Outcomes
    seconds: float
    changes: list[Change]
    fewest: int | None
    broken: list[str]
    picked: int
    used_s: dict[str, float]


async def run(requests: int, rate: float) -> bool:
    network = own_network()()
    print(machine(), flush=True)
    with child(upstreams, network) as endpoints:
        await asyncio.to_thread(endpoints.answer)
        async with stage(network, stable=2, canary=2, exp=2, grpc=1, simulate=False) as place:
            done, opened = asyncio.Event(), asyncio.Semaphore(0)
            streams = [asyncio.create_task(read_events(place, opened)) for _ in range(SSE_STREAMS)]
            streams += [asyncio.create_task(talk(place, done, opened)) for _ in range(GRPC_STREAMS)]
            async with asyncio.timeout(OPEN_S):
                for _ in streams:
                    await opened.acquire()
            host, _, port = place.url.removeprefix("http://").partition(":")
            load = Load(
                host=host, port=int(port), per_s=rate, connections=CONNECTIONS, requests=requests, kinds=kinds(),
                told_by="x-arm",
            )  # fmt: skip
            with child(clients, load) as asking:
                await asyncio.to_thread(asking.answer)
                processes = {"clients": asking, "endpoints": endpoints}
                before_s, picked = cpu(place, processes), await picks(place)
                began_s = time.monotonic()
                churning = asyncio.create_task(churn(place, done))
                asking.tell("begin")
                outcomes, seconds = await asyncio.to_thread(asking.answer, 600)
                used_s = {name: after - before_s[name] for name, after in cpu(place, processes).items()}
                picked = await picks(place) - picked
            ended_s = time.monotonic()
            done.set()
            changes = await churning
            endpoints.tell("stop")
            broken = [what for what in await asyncio.gather(*streams) if what]
    fewest = fewest_in_span(changes, began_s, ended_s)
    return report(
        Found(
            outcomes=outcomes, seconds=seconds, changes=changes, fewest=fewest, broken=broken, picked=picked,
            used_s=used_s,
        )
    )  # fmt: skip


def report(found: Found) -> bool:
    """Print what came of it; whether all of it is good."""
    outcomes, seconds = found.outcomes, found.seconds
    total = sum(outcomes.values())
    failed = {f"{kind}: {told}": count for (kind, told), count in outcomes.items() if told not in ARMS}
    served = {kind: sum(outcomes.get((kind, arm), 0) for arm in ARMS) for kind in ("variant", "other")}
    right, wrong = outcomes.get(("variant", "exp"), 0), outcomes.get(("other", "exp"), 0)
    rate_per_s = total / seconds
    print(f"{total} requests in {seconds:.1f} s, {rate_per_s:.0f} a second (wanted: at least {BAR_PER_S})")
    print(f"picked by the picker: {found.picked} (others fell open to Envoy's balancing)")
    order = sorted(one.acked_ms for one in found.changes)
    p50_ms, p99_ms = statistics.median(order), order[int(0.99 * (len(order) - 1))]
    fewest = "less than 10 s of it" if found.fewest is None else f"{found.fewest} in the worst 10 s"
    print(f"{len(order)} changes of weights, all acknowledged; {fewest} (wanted: at least {BAR_CHANGES})")
    print(f"acknowledged after p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, max {order[-1]:.1f} ms (wanted: p99 < 100)")
    print(f"failed requests: {sum(failed.values())} {failed or ''}".rstrip())
    print(f"with the header: {right} of {served['variant']} at its variant; ", end="")
    print(f"with another value: {wrong} of {served['other']} there")
    print(f"the others: {outcomes.get(('other', 'canary'), 0)} canary, {outcomes.get(('other', 'stable'), 0)} stable")
    streams = f"{SSE_STREAMS} SSE and {GRPC_STREAMS} gRPC"
    print(f"streams broken: {len(found.broken)} of {streams} {found.broken or ''}".rstrip())
    shares = ", ".join(f"{name} {1e6 * s / total:.0f} µs" for name, s in found.used_s.items())
    cores = sum(found.used_s.values()) / seconds
    print(f"CPU for each request, changes and streams included: {shares}; {cores:.2f} cores in all")
    quick = rate_per_s >= BAR_PER_S and (found.fewest is None or found.fewest >= BAR_CHANGES)
    return quick and not failed and not found.broken and right == served["variant"] and not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="half of them with the header (default 20,000)")
    parser.add_argument("--rate", type=float, default=700.0, help="requests per second asked for (default 700)")
    asked = parser.parse_args()
    raise SystemExit(0 if asyncio.run(run(asked.requests, asked.rate)) else 1)


if __name__ == "__main__":
    main()
