"""`pointsman drill`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from pointsman.app.client import Admin, admin_options
from pointsman.app.commands.shared import TABLE, emit, output_option, refuse
from pointsman.app.drill.kinds import KINDS
from pointsman.app.drill.manifests import MODEL, SITES
from pointsman.app.drill.real import ASKABLE, RealSite, asked_drill
from pointsman.app.drill.run import Limits
from pointsman.app.drill.session import LOAD_PER_S, ReportFolder, Series, as_json, drills, rows
from pointsman.app.logs import configure_logs
from pointsman.app.up import until_stopped
from pointsman.core.errors import PointsmanError
from pointsman.failover.report import Run, run_text, table_text

EXIT_MISSED: Final = 2
EXIT_ABORTED: Final = 3

FOLDER: Final = click.Path(file_okay=False, path_type=Path)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of `run` and `all`."""
    found: Callable[..., Any] = output_option(command)
    found = click.option("--report", type=FOLDER, help="Keep the figures and a picture of each run here.")(found)
    found = click.option(
        "--load",
        "load_per_s",
        type=click.FloatRange(min=5, max=1_000),
        default=LOAD_PER_S,
        show_default=True,
        metavar="REQUESTS/S",
        help="At the gateway of the site that fails; half of it at the other one. The bars are for 100 and more.",
    )(found)
    found = click.option("--tls", is_flag=True, help="Mutual TLS between gateways and control planes.")(found)
    found = click.option(
        "--max-duration",
        "longest_s",
        type=click.FloatRange(min=1, max=3_600),
        metavar="SECONDS",
        help="Abort a run that takes longer.",
    )(found)
    aborts = click.option(
        "--abort-if-failed",
        "failed",
        type=click.IntRange(min=0),
        metavar="N",
        help="Abort when more than N requests have failed.",
    )
    return aborts(found)


def _gateway(text: str) -> tuple[str, str]:
    """SITE=URL."""
    site, _, url = text.partition("=")
    if not site or not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{text!r} is not SITE=URL, such as eu-west=http://10.0.0.5:8080")
    return site, url.rstrip("/")


@click.group()
def drill() -> None:
    """Make faults on purpose and see what clients lose, in a set-up of two sites that is started for it.

    \b
    Example:
      pointsman drill run crash-all-primaries --site us-east
    """


@drill.command("list")
@output_option
def list_(output: str) -> None:
    """The drills, what they do, and what must be reached.

    \b
    Example:
      pointsman drill list
    """
    value = [
        {"kind": kind.name, "what": kind.what, "bar": kind.bars.text(), "real": kind.name in ASKABLE}
        for kind in KINDS.values()
    ]
    width = max(len(name) for name in KINDS)
    emit(value, output, lambda: [f"{kind.name:<{width}}  {kind.what}; {kind.bars.text()}" for kind in KINDS.values()])


@drill.command()
@click.argument("kind", type=click.Choice(list(KINDS)), metavar="KIND")
@click.option("--site", default=SITES[0], show_default=True, help="The site that fails.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=1, show_default=True)
@_common
@click.option("--real", is_flag=True, help="Ask the control plane at --admin, instead of starting a set-up.")
@click.option("--reason", default="", help="Why; required with --real, and goes into its audit log.")
@click.option(
    "--gateway", "gateways", multiple=True, type=_gateway, metavar="SITE=URL", help="With --real: probe this gateway."
)
@click.option("--model", default=MODEL, show_default=True, help="With --real: what the probe asks for.")
@admin_options
def run(
    *,
    kind: str,
    site: str,
    runs: int,
    real: bool,
    reason: str,
    gateways: tuple[tuple[str, str], ...],
    model: str,
    admin: Admin,
    output: str,
    report: Path | None,
    tls: bool,
    load_per_s: float,
    failed: int | None,
    longest_s: float | None,
) -> None:
    """Run one kind of drill. Model servers are simulated, everything else is real.

    With --real nothing is started and nothing killed: the control plane is asked, and only for what harms nobody.

    \b
    Exit code: 0 bars met, 2 not met, 3 aborted.
    Example:
      pointsman drill run crash --site us-east --runs 5 --report reports
      pointsman drill run evacuate --real --site eu-west --reason "monthly drill" --admin http://10.0.0.5:19000
    """
    limits = Limits(failed=failed, longest_s=longest_s)
    if not real:
        if reason or gateways:
            raise click.UsageError("--reason and --gateway belong to --real")
        if site not in SITES:
            raise click.BadParameter(f"the set-up has the sites {' and '.join(SITES)}", param_hint="--site")
        _run_series(
            Series(kinds=[KINDS[kind]], site=site, runs=runs, tls=tls, limits=limits, load_per_s=load_per_s),
            report,
            output,
        )
        return
    if kind not in ASKABLE:
        raise click.UsageError(f"a real site is asked for {' or '.join(ASKABLE)} only: {kind} would harm its users")
    if not reason.strip():
        raise click.UsageError("a drill at a real site needs a --reason")
    where = RealSite(admin=admin, site=site, reason=reason, gateways=dict(gateways), model=model, limits=limits)
    found: list[Run] = []

    async def ask() -> None:
        for number in range(1, runs + 1):
            done, picture = await asked_drill(KINDS[kind], where, number)
            _take(done, picture, found, report, output)
            if done.aborted:
                return

    _finish(ask(), found, output)
    sys.exit(_code(found, expected=runs))


@drill.command("all")
@click.option("--site", type=click.Choice(SITES), default=SITES[0], show_default=True, help="The site that fails.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=1, show_default=True, help="Of each kind.")
@click.option("--only", multiple=True, type=click.Choice(list(KINDS)), help="Only these kinds; repeat it.")
@_common
def all_(
    *,
    site: str,
    runs: int,
    only: tuple[str, ...],
    output: str,
    report: Path | None,
    tls: bool,
    load_per_s: float,
    failed: int | None,
    longest_s: float | None,
) -> None:
    """Run every drill and print the table. 20 runs of each take about an hour and a half.

    \b
    Exit code: 0 bars met, 2 not met, 3 aborted.
    Example:
      pointsman drill all --runs 20 --report reports
    """
    kinds = [kind for name, kind in KINDS.items() if not only or name in only]
    limits = Limits(failed=failed, longest_s=longest_s)
    _run_series(
        Series(kinds=kinds, site=site, runs=runs, tls=tls, limits=limits, load_per_s=load_per_s), report, output
    )


@drill.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@output_option
def report(folder: Path, output: str) -> None:
    """Print the table over the runs that --report has kept in FOLDER, and write it there as report.md and report.txt.

    \b
    Exit code: 0 bars met, 2 not met.
    Example:
      pointsman drill report reports
    """
    try:
        reports = ReportFolder(folder)
        found = reports.runs()
        reports.write_table()
    except PointsmanError as error:
        refuse("drill report", error)
    if not found:
        raise click.UsageError(f"{folder} holds no runs; make some with --report {folder}")
    emit(as_json(found), output, lambda: [table_text(rows(found))])
    sys.exit(_code(found))


def _run_series(series: Series, report: Path | None, output: str) -> None:
    found: list[Run] = []

    async def go() -> None:
        async for done, picture in drills(series):
            _take(done, picture, found, report, output)

    _finish(go(), found, output)
    if report is not None:
        try:
            ReportFolder(report).write_table()
        except PointsmanError as error:
            refuse("drill", error)
    sys.exit(_code(found, expected=len(series.kinds) * series.runs))


def _take(done: Run, picture: str, found: list[Run], report: Path | None, output: str) -> None:
    """One run has ended."""
    found.append(done)
    if report is not None:
        ReportFolder(report).add(done, picture)
    if output == TABLE:
        click.echo(run_text(done, KINDS[done.kind].bars) + "\n")


def _finish(work: Any, found: Sequence[Run], output: str) -> None:
    configure_logs(level="error")
    try:
        asyncio.run(until_stopped(work))
    except PointsmanError as error:
        refuse("drill", error)
    finally:
        if found:
            emit(as_json(found), output, lambda: [table_text(rows(found))])


def _code(found: Sequence[Run], *, expected: int = 0) -> int:
    if any(run.aborted for run in found) or len(found) < expected:
        return EXIT_ABORTED
    return 0 if all(row.met for row in rows(found)) else EXIT_MISSED
