"""The commands `replay` and `trace`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec
from rich.console import Console

from pointsman.core.errors import PointsmanError
from pointsman.replay.generate import MultiTurn, describe, generate, trace_lines
from pointsman.replay.progress import BarProgress, LineProgress, ProgressSink
from pointsman.replay.report import ReplayResult, Report, make_report, report_json
from pointsman.replay.run import DEFAULT_ADMIN, ReplayOptions, base_url, replay
from pointsman.replay.table import render
from pointsman.replay.trace import Selection
from pointsman.replay.upstreams import upstream_of_url

EXIT_REFUSED: Final = 1
EXIT_FAILURES: Final = 2
EXIT_INTERRUPTED: Final = 130
"""Exit codes: nothing was replayed; some requests failed; Ctrl-C (128 + SIGINT, as shells count)."""

PIPE_COLUMNS: Final = 120
MAX_JITTER_S: Final = 3600.0


class _Number(click.FloatRange):
    """A range that knows that `nan` and `inf` are in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


_POSITIVE: Final = _Number(min=0, min_open=True)
_NOT_NEGATIVE: Final = _Number(min=0)
_AT_LEAST_ONE: Final = _Number(min=1)


def _jitter(_context: click.Context, _parameter: click.Parameter, value: str) -> float | None:
    if value == "auto":
        return None
    try:
        seconds = float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither 'auto' nor a number of seconds") from error
    if not 0 <= seconds <= MAX_JITTER_S:
        raise click.BadParameter(f"{value} is not between 0 and {MAX_JITTER_S:g} seconds")
    return seconds


@click.command("replay")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--gateway", required=True, metavar="URL", help="Where the requests go, e.g. http://127.0.0.1:8080.")
@click.option("--speed", type=_POSITIVE, default=1.0, show_default=True, help="Divides the trace's arrival times.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N requests of the part.")
@click.option("--start", "start_s", type=_NOT_NEGATIVE, default=0.0, help="Begin this many seconds into it.")
@click.option("--duration", "duration_s", type=_POSITIVE, help="Only the requests of this many seconds.")
@click.option("--model", default="", help="Model to ask for; else the first that the gateway lists.")
@click.option(
    "--jitter",
    "jitter_s",
    callback=_jitter,
    metavar="auto|SECONDS",
    default="auto",
    show_default=True,
    help="Width of the random delay added to each arrival; auto: the step of quantised timestamps, else none.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the jitter.")
@click.option(
    "--admin",
    metavar="URL",
    help=f"Admin API that lists the upstreams with site and pool; {DEFAULT_ADMIN} is tried for a local gateway.",
)
@click.option("--upstream", "upstreams", multiple=True, metavar="URL", help="A model server to scrape; repeatable.")
@click.option("--timeout", "timeout_s", type=_POSITIVE, default=600.0, show_default=True, help="Seconds per request.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def replay_command(
    *,
    trace: Path,
    gateway: str,
    speed: float,
    limit: int | None,
    start_s: float,
    duration_s: float | None,
    model: str,
    jitter_s: float | None,
    seed: int,
    admin: str | None,
    upstreams: tuple[str, ...],
    timeout_s: float,
    output: str,
) -> None:
    """Send a recorded TRACE (Mooncake format) through a gateway and report what clients and upstreams saw.

    Requests leave at the trace's arrival times, whatever became of those before. Prompts are made from the hash ids, so
    equal ids are equal text. Ctrl-C ends the replay and prints the report of what ran.

    Exit code: 0 all requests succeeded, 1 nothing was replayed, 2 some requests failed, 130 interrupted.

    \b
    Example:
      pointsman replay examples/traces/multi-turn-small.jsonl --gateway http://127.0.0.1:8080
    """
    selection = Selection(start_s=start_s, duration_s=duration_s, limit=limit, jitter_s=jitter_s, seed=seed)
    try:
        options = ReplayOptions(
            trace=trace,
            gateway=gateway,
            model=model,
            speed=speed,
            selection=selection,
            admin=admin,
            upstreams=tuple(upstream_of_url(base_url(url, "--upstream")) for url in upstreams),
            timeout_s=timeout_s,
        )
        _raise_file_limit()
        with _progress() as progress:
            result = asyncio.run(_interruptible(options, progress))
    except PointsmanError as error:
        click.echo(f"pointsman replay: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    report = make_report(result)
    if output == "json":
        click.echo(report_json(report), nl=False)
    else:
        # A pipe or a file has no width of its own; 80 columns would break the lines.
        Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(render(report))
    sys.exit(exit_code(report))


def exit_code(report: Report) -> int:
    """What the shell learns of a replay that ran."""
    if report.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILURES if report.failed else 0


async def _interruptible(options: ReplayOptions, progress: ProgressSink) -> ReplayResult:
    """The first SIGINT or SIGTERM ends the load in good order, a second one ends the program."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return await replay(options, progress=progress, stop=stop)


@contextlib.contextmanager
def _progress() -> Iterator[ProgressSink]:
    """Progress goes to stderr, so that a report in a pipe stays clean."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineProgress(sys.stderr)
        return
    with BarProgress(console) as bar:
        yield bar


def _raise_file_limit() -> None:
    """Let an open loop hold as many connections as the system allows: the usual soft limit of 1,024 files is soon met
    when a gateway slows down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@click.group("trace")
def trace_group() -> None:
    """Make request traces."""


_DEFAULTS: Final = MultiTurn()


@trace_group.command("generate", context_settings={"show_default": True})
@click.option("--duration", "duration_s", type=_POSITIVE, default=_DEFAULTS.duration_s, help="Seconds of trace.")
@click.option("--rate", type=_POSITIVE, default=_DEFAULTS.rate, help="Requests per second, in the mean.")
@click.option("--turns", type=_AT_LEAST_ONE, default=_DEFAULTS.turns, help="Requests of a session, mean.")
@click.option(
    "--think", "think_s", type=_POSITIVE, default=_DEFAULTS.think_s, help="Seconds before the next turn, mean."
)
@click.option("--system-prompts", type=click.IntRange(0, 10_000), default=_DEFAULTS.system_prompts, help="How many.")
@click.option(
    "--system-blocks", type=click.IntRange(0, 10_000), default=_DEFAULTS.system_blocks, help="Blocks of each."
)
@click.option("--first-tokens", type=_AT_LEAST_ONE, default=_DEFAULTS.first_tokens, help="First message, mean.")
@click.option("--user-tokens", type=_AT_LEAST_ONE, default=_DEFAULTS.user_tokens, help="Later messages, mean.")
@click.option("--output-tokens", type=_AT_LEAST_ONE, default=_DEFAULTS.output_tokens, help="Answers, mean.")
@click.option(
    "--max-output-tokens", type=click.IntRange(min=1), default=_DEFAULTS.max_output_tokens, help="Longest answer."
)
@click.option(
    "--max-input-tokens", type=click.IntRange(min=1), default=_DEFAULTS.max_input_tokens, help="Longest prompt."
)
@click.option("--sigma", type=_Number(min=0, max=4), default=_DEFAULTS.sigma, help="Spread of the lengths (lognormal).")
@click.option("--seed", type=int, default=_DEFAULTS.seed, help="The same seed makes the same trace.")
@click.option("--out", type=click.File("wb"), default="-", help="File to write; - is standard output.")
def generate_command(out: BinaryIO, **parameters: float) -> None:
    """Make a multi-turn chat trace in Mooncake's format; its figures go to standard error.

    \b
    Example:
      pointsman trace generate --duration 60 --rate 5 --turns 5 --think 6 --out small.jsonl
    """
    requests = generate(msgspec.convert(parameters, MultiTurn))
    if not requests:
        click.echo(
            "pointsman trace generate: no request came in that time (raise --rate, --duration or --max-input-tokens)",
            err=True,
        )
        sys.exit(EXIT_REFUSED)
    out.writelines(trace_lines(requests))
    stats = describe(requests)
    click.echo(
        f"{stats.requests:,} requests in {stats.span_s:.0f} s; prompt tokens: mean {stats.input_mean:,.0f}, "
        f"p50 {stats.input_p50:,.0f}, p95 {stats.input_p95:,.0f}, max {stats.input_max:,}; "
        f"output tokens: mean {stats.output_mean:,.0f}; seen before: {stats.reuse:.1%}",
        err=True,
    )
