"""The replicas of a simulation, each with its server; the set can change while the others run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from pointsman.core.clock import Clock
from pointsman.sim.grpc_api import GrpcShell
from pointsman.sim.http_api import HttpShell
from pointsman.sim.listener import ReservedPort
from pointsman.sim.replica import Replica, Shell
from pointsman.sim.spec import ReplicaSpec

Entry = tuple[Replica, Shell]


class Fleet(Mapping[str, Entry]):
    """Replica and server by name. All calls come from one event loop."""

    def __init__(self, *, speed: float, seed: int, clock: Clock) -> None:
        self._speed = speed
        self._seed = seed
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._lock = asyncio.Lock()

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    async def apply(self, wanted: Sequence[ReplicaSpec]) -> None:
        """Make `wanted` (checked, names unique) the set of replicas: end those that are gone or changed, start the new.

        A replica whose specification stayed the same is not touched. Raises ConfigError that names replica, address and
        port when one cannot be had; the others of `wanted` that came before it run then.
        """
        async with self._lock:
            keep = {spec.name: spec for spec in wanted}
            for name, (replica, _) in list(self._entries.items()):
                if keep.get(name) != replica.spec:
                    await self._end(name)
            for i, spec in enumerate(wanted):
                if spec.name not in self._entries:
                    await self._start(spec, what=f"replicas[{i}] ({spec.name})")

    async def close(self) -> None:
        """End all of them."""
        async with self._lock:
            for name in list(self._entries):
                await self._end(name)

    async def _start(self, spec: ReplicaSpec, *, what: str) -> None:
        reserved = ReservedPort(spec.address, spec.port, what=what)
        replica = Replica(spec, speed=self._speed, seed=self._seed, clock=self._clock)
        shell: Shell = (GrpcShell if spec.protocol == "grpc" else HttpShell)(replica, reserved)
        try:
            await shell.open()
        except BaseException:
            await shell.close()
            replica.close()
            raise
        self._entries[spec.name] = (replica, shell)

    async def _end(self, name: str) -> None:
        replica, shell = self._entries.pop(name)
        await shell.close()
        replica.close()
