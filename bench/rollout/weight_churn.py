"""Weights change ten times a second while requests run and streams are open: does anybody notice?

    python bench/rollout/weight_churn.py [--requests 20000] [--rate 700]

Half of the requests carry the header of a variant, half another value of it; SSE and gRPC streams are open from the
first change to the last. Each change goes through the admin API and waits for Envoy's acknowledgement. Ends with 1 if a
request failed, a header request went elsewhere, another one went to the variant, or a stream broke.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import aiohttp
import grpc
from aiohttp import web
from stage import PORT, VARIANT, Stage, addresses, own_network, stage

sys.path.append(str(Path(__file__).parents[1] / "xds"))
from processes import child, machine  # a neighbour's helper

CONNECTIONS: Final = 32
SSE_STREAMS: Final = 10
GRPC_STREAMS: Final = 2
CHANGES_PER_S: Final = 10
EVENT_S: Final = 0.2
METHOD: Final = "/bench.Echo/Chat"
BAR_PER_S: Final = 500


def upstreams(pipe: Connection, network: str) -> None:
    """Endpoints of all pools that say which pool they are of, stream events on demand, and echo gRPC messages."""

    async def main() -> None:
        stop = asyncio.Event()
        for pool in ("canary", "stable", "exp"):
            runner = web.AppRunner(_application(pool, stop), access_log=None)
            await runner.setup()
            for address in addresses(network, pool, 2):
                await web.TCPSite(runner, address, PORT).start()
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(_echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Chat": handler}),))
        server.add_insecure_port(f"{addresses(network, 'grpc', 1)[0]}:{PORT}")
        await server.start()
        pipe.send("ready")
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), stop.set)
        await stop.wait()
        loop.remove_reader(pipe.fileno())
        await asyncio.Event().wait()

    asyncio.run(main())


def _application(pool: str, stop: asyncio.Event) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok", headers={"x-arm": pool})

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        number = 0
        while not stop.is_set():
            await response.write(f"data: {number}\n\n".encode())
            number += 1
            await asyncio.sleep(EVENT_S)
        await response.write(f"data: {number}\n\ndata: [DONE]\n\n".encode())
        return response

    application = web.Application()
    application.router.add_get("/v1/models", answer)
    application.router.add_get("/health", answer)
    application.router.add_post("/v1/chat/completions", stream)
    return application


async def _echo(messages: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message


def clients(pipe: Connection, host: str, port: int, rate: float, requests: int) -> None:
    """Ask `rate` times a second, every other time with the variant's header; send who answered, and how long it took.

    The outcome of a request is (with the header, the arm or the status line or what went wrong). No retries here.
    """

    async def ask(number: int, outcomes: Counter[tuple[bool, str]]) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        loop = asyncio.get_running_loop()
        due_s = loop.time() + number / rate
        for turn in range(requests // CONNECTIONS):
            await asyncio.sleep(due_s - loop.time())
            due_s += CONNECTIONS / rate
            variant = turn % 2 == 0
            value = VARIANT[1] if variant else f"{VARIANT[1]}x"
            writer.write(f"GET /v1/models HTTP/1.1\r\nhost: bench\r\n{VARIANT[0]}: {value}\r\n\r\n".encode())
            try:
                head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)).decode("latin-1").lower()
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                await reader.readexactly(int(fields["content-length"]))
                outcomes[variant, fields.get("x-arm", head.partition("\r\n")[0])] += 1
            except (OSError, EOFError, TimeoutError) as error:
                outcomes[variant, type(error).__name__] += 1
                writer.close()
                reader, writer = await asyncio.open_connection(host, port)
        writer.close()

    async def main() -> None:
        outcomes: Counter[tuple[bool, str]] = Counter()
        began_s = time.perf_counter()
        await asyncio.gather(*(ask(number, outcomes) for number in range(CONNECTIONS)))
        pipe.send((dict(outcomes), time.perf_counter() - began_s))

    asyncio.run(main())


async def read_events(place: Stage, opened: asyncio.Semaphore) -> str:
    """What is wrong with an SSE stream; empty if every event came, in order, to the end."""
    body = json.dumps({"model": "bench", "stream": True, "messages": [{"role": "user", "content": "go on"}]})
    headers = {"content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=30)
    events: list[str] = []
    try:
        async with place.session.post(
            f"{place.url}/v1/chat/completions", data=body, headers=headers, timeout=timeout
        ) as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    events.append(line[6:].decode().strip())
                    if len(events) == 1:
                        opened.release()
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__} after {len(events)} events"
    finally:
        if not events:
            opened.release()
    whole = [*map(str, range(len(events) - 1)), "[DONE]"]
    return "" if events == whole else f"ends with {events[-1:]} after {len(events)} events"


async def talk(place: Stage, stop: asyncio.Event) -> str:
    """What is wrong with a bidirectional gRPC stream; empty if every message came back and it ended with OK."""
    async with grpc.aio.insecure_channel(place.grpc_target) as channel:
        call = channel.stream_stream(METHOD)()
        try:
            number = 0
            while not stop.is_set():
                await call.write(b"%d" % number)
                if await call.read() != b"%d" % number:
                    return f"message {number} did not come back"
                number += 1
                await asyncio.sleep(EVENT_S)
            await call.done_writing()
            end = await call.read()
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} after {number} messages"
        return "" if end is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK else "it did not end with OK"


async def change(place: Stage, canary: int) -> float:
    """Set the weights and wait for the gateway; milliseconds to its acknowledgement.

    Raises:
        SystemExit: it was refused, or not acknowledged.
    """
    body = {"weights": {"canary": canary, "stable": 100 - canary}, "wait": True}
    async with place.session.put(f"{place.admin}/api/v1/weights/chat/split", json=body) as response:
        answer = await response.json()
    acks = answer.get("acks", [])
    if not acks or not all(one["done"] for one in acks):
        raise SystemExit(f"a change was not acknowledged: {answer}")
    return float(max(ms for one in acks for ms in one["acked_ms"].values()))


async def churn(place: Stage, done: asyncio.Event) -> list[float]:
    """Another split, ten times a second, until told to stop."""
    loop = asyncio.get_running_loop()
    due_s, times_ms, turn = loop.time(), [], 0
    while not done.is_set():
        turn += 1
        times_ms.append(await change(place, turn * 37 % 101))
        due_s = max(due_s + 1 / CHANGES_PER_S, loop.time())
        await asyncio.sleep(due_s - loop.time())
    return times_ms


async def run(requests: int, rate: float) -> bool:
    network = own_network()()
    print(machine())
    with child(upstreams, network) as endpoints:
        await asyncio.to_thread(endpoints.answer)
        async with stage(network, stable=2, canary=2, exp=2, grpc=1, simulate=False) as place:
            done, opened = asyncio.Event(), asyncio.Semaphore(0)
            events = [asyncio.create_task(read_events(place, opened)) for _ in range(SSE_STREAMS)]
            talks = [asyncio.create_task(talk(place, done)) for _ in range(GRPC_STREAMS)]
            for _ in events:
                await opened.acquire()
            churning = asyncio.create_task(churn(place, done))
            host, _, port = place.url.removeprefix("http://").partition(":")
            with child(clients, host, int(port), rate, requests) as asking:
                outcomes, seconds = await asyncio.to_thread(asking.answer, 600)
            done.set()
            times_ms = await churning
            endpoints.tell("stop")
            broken = [what for what in await asyncio.gather(*events, *talks) if what]
    return report(outcomes, seconds, times_ms, broken)


def report(outcomes: dict[tuple[bool, str], int], seconds: float, times_ms: list[float], broken: list[str]) -> bool:
    """Print what came of it; whether all of it is good."""
    arms = {"canary", "stable", "exp"}
    total = sum(outcomes.values())
    failed = {str(key): count for key, count in outcomes.items() if key[1] not in arms}
    right, wrong = outcomes.get((True, "exp"), 0), outcomes.get((False, "exp"), 0)
    with_header = sum(count for (header, arm), count in outcomes.items() if header and arm in arms)
    without = sum(count for (header, arm), count in outcomes.items() if not header and arm in arms)
    order = sorted(times_ms)
    print(f"{total} requests in {seconds:.1f} s, {total / seconds:.0f} a second (wanted: at least {BAR_PER_S})")
    p50_ms, p99_ms = statistics.median(order), order[int(0.99 * (len(order) - 1))]
    print(f"{len(times_ms)} changes of weights, {len(times_ms) / seconds:.1f} a second, ", end="")
    print(f"acknowledged after p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, max {order[-1]:.1f} ms")
    print(f"failed requests: {sum(failed.values())} {failed or ''}")
    print(f"with the header: {right} of {with_header} at its variant; with another value: {wrong} of {without} there")
    print(f"the others: {outcomes.get((False, 'canary'), 0)} canary, {outcomes.get((False, 'stable'), 0)} stable")
    print(f"streams broken: {len(broken)} of {SSE_STREAMS} SSE and {GRPC_STREAMS} gRPC {broken or ''}")
    return not failed and not broken and right == with_header and not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="half of them with the header (default 20,000)")
    parser.add_argument("--rate", type=float, default=700.0, help="requests per second asked for (default 700)")
    asked = parser.parse_args()
    raise SystemExit(0 if asyncio.run(run(asked.requests, asked.rate)) else 1)


if __name__ == "__main__":
    main()
