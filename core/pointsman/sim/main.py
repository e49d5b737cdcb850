"""`python -m pointsman.sim.main --spec FILE`: simulated replicas until SIGTERM or SIGINT.

Prints one line of JSON (`Ready`) on stdout when everything listens. A wrong specification or a taken port is told on
stderr, with exit code 2.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import msgspec

from pointsman.core.errors import ConfigError, Problem
from pointsman.sim.server import Ready, serve
from pointsman.sim.spec import SimSpec, parse_spec


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="pointsman.sim.main", description="Simulated vLLM replicas on real ports.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with the specification (SimSpec)")
    path: Path = parser.parse_args(arguments).spec
    try:
        asyncio.run(run_until_signal(read_spec(path)))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def read_spec(path: Path) -> SimSpec:
    """The specification in a file. Raises ConfigError when it cannot be read or is wrong."""
    try:
        body = path.read_bytes()
    except OSError as error:
        problem = Problem(file=str(path), line=0, field="", what=f"cannot be read: {error.strerror}")
        raise ConfigError(problem) from error
    return parse_spec(body, str(path))


async def run_until_signal(spec: SimSpec) -> None:
    """Serve `spec`, say so on stdout, and end on SIGTERM or SIGINT. Raises ConfigError as `serve` does."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(spec, on_ready=say_ready, stop=stop)


def say_ready(ready: Ready) -> None:
    """One JSON line on stdout."""
    sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
