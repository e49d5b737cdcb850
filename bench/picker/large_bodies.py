"""How long one large body keeps the picker's event loop from others: CPU of its longest turn, in ms.

    python bench/picker/large_bodies.py [--rounds N]

A call comes over one connection as Envoy sends it, in reads of 256 KB, each a turn of the loop as with a socket. A turn
is measured by the CPU time of the loop's thread, so that other work on the machine does not count; a thread that reads
bodies is measured apart, of which the loop waits for single calls only (`pointsman.extproc.request`). Per body the
lowest of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hot_path import POOL, Wire, message_of
from prometheus_client import CollectorRegistry

from pointsman.core.clock import SystemClock
from pointsman.core.grpc_health import GrpcHealth
from pointsman.core.model import Endpoint, ModelRewrite, Plan, Pool, Site, SiteGroup
from pointsman.extproc import Picker
from pointsman.extproc.http2.calls import Calls
from pointsman.extproc.metrics import PickerMetrics
from pointsman.extproc.pick_calls import PickCalls

READ_BYTES = 256 * 1024
MIB = 1024 * 1024
SIZES_MIB = (1, 4, 20, 60)


def bodies(size_mib: int) -> dict[str, bytes]:
    """By kind; the model that is to be renamed stands behind all else."""
    count = size_mib * MIB
    chat = b'{"messages":[{"role":"user","content":"%s"}],"model":"asked"}'
    return {
        "base64": chat % (b"iVBORw0KGgo/" * (count // 12)),
        "escaped quotes": chat % (b'say \\"hello\\" to them' * (count // 21)),
        "numbers": b'{"input":[' + b"1.5," * (count // 4) + b'1],"model":"asked"}',
    }


def plan() -> Plan:
    endpoints = tuple(Endpoint(name=f"e{n}", address=f"10.0.0.{n}", port=8000, site="s") for n in range(1, 101))
    rewrite = ModelRewrite(model="asked", targets=(("served", 10_000),))
    pool = Pool(
        name=POOL, groups=(SiteGroup(site="s", priority=0, weight=1, endpoints=endpoints),), rewrites=(rewrite,)
    )
    return Plan(sites=(Site(name="s"),), pools=(pool,))


async def measured(body: bytes) -> tuple[float, float, float]:
    """CPU in ms: longest turn of the loop, all its turns, the readers."""
    picker = Picker(SystemClock())
    picker.apply(plan())
    turns: list[float] = []
    reading: list[float] = []
    ended = asyncio.Event()

    def timed(work: Callable[[], None], into: list[float]) -> Callable[[], None]:
        def run() -> None:
            began_s = time.thread_time()
            work()
            into.append((time.thread_time() - began_s) * 1000.0)

        return run

    class Readers(ThreadPoolExecutor):
        def submit(self, work, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            def read():  # type: ignore[no-untyped-def]
                began_s = time.thread_time()
                try:
                    return work(*args, **kwargs)
                finally:
                    reading.append((time.thread_time() - began_s) * 1000.0)

            return super().submit(read)

    with Readers(1) as readers:
        services = PickCalls(picker, PickerMetrics(CollectorRegistry(), picker), GrpcHealth(), readers=readers)

        def look() -> None:
            calls.output()
            if len(calls) == 1:  # the access log's is left
                ended.set()

        def defect(error: BaseException) -> None:
            raise error

        calls = Calls(services.methods(), wake=look, on_defect=defect)
        wire = Wire(traced=False)
        calls.receive(wire.greeting())
        data = wire.pick(message_of(body, random.Random(1)))
        loop = asyncio.get_running_loop()
        handle_run = asyncio.Handle._run

        def run(handle: asyncio.Handle) -> None:
            began_s = time.thread_time()
            handle_run(handle)
            turns.append((time.thread_time() - began_s) * 1000.0)

        asyncio.Handle._run = run  # type: ignore[method-assign]
        try:
            for at in range(0, len(data), READ_BYTES):
                piece = data[at : at + READ_BYTES]

                def receive(piece: bytes = piece) -> None:
                    calls.receive(piece)
                    look()

                loop.call_soon(receive)
                await asyncio.sleep(0)
            async with asyncio.timeout(120):
                await ended.wait()
        finally:
            asyncio.Handle._run = handle_run  # type: ignore[method-assign]
    return max(turns), sum(turns), sum(reading)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| body | MiB | longest turn | all turns | in a thread |")
    print("|---|---|---|---|---|")
    for size_mib in SIZES_MIB:
        for kind, body in bodies(size_mib).items():
            found = [asyncio.run(measured(body)) for _ in range(options.rounds)]
            longest, whole, apart = (min(column) for column in zip(*found, strict=True))
            print(f"| {kind} | {size_mib} | {longest:.1f} | {whole:.1f} | {apart:.1f} |", flush=True)


if __name__ == "__main__":
    main()
