"""The report as people read it: a few lines and two tables for a `rich` console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pointsman.replay.report import PrefixHits, Quantiles, Report, Share, Timing


def render(report: Report) -> RenderableType:
    """Everything, in the order in which one asks for it: did it work, how long did it take, who did it."""
    parts: list[RenderableType] = [_head(report), *_failures(report), _latencies(report), _totals(report)]
    if report.replicas:
        parts.append(_shares(report))
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    return Group(*parts)


def _head(report: Report) -> Text:
    text = Text(f"{report.trace} → {report.gateway}, model {report.model}, speed {report.speed:g}")
    if report.jitter_ms:
        text.append(f", arrivals + U(0, {report.jitter_ms / 1000:g} s), seed {report.seed}")
    text.append(f"\n{report.sent:,} requests sent")
    if report.sent != report.planned:
        text.append(f" of {report.planned:,}")
    text.append(f" in {report.wall_s:.1f} s: {report.succeeded:,} succeeded, ")
    text.append(f"{report.failed:,} failed", style="bold red" if report.failed else "bold green")
    if report.unfinished:
        text.append(f", {report.unfinished:,} not finished")
    if report.interrupted:
        text.append("; interrupted: these figures are of the part that ran", style="bold yellow")
    return text


def _failures(report: Report) -> list[Text]:
    lines = [Text(f"  {count:,} × {name}", style="red") for name, count in report.failures.items()]
    return lines + [Text(f"  {example}", style="dim") for example in report.failure_examples]


def _latencies(report: Report) -> Table:
    table = Table(title="Latency of successful requests, ms", title_justify="left")
    table.add_column("")
    for name in ("mean", "p50", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    for name, timing in (("TTFT", report.ttft_ms), ("end to end", report.e2e_ms)):
        _add_timing(table, name, timing)
    _add_row(table, "sent after its time (all)", report.generator_late_ms)
    return table


def _add_timing(table: Table, name: str, timing: Timing | None) -> None:
    if timing is None or timing.trace is None:
        _add_row(table, name, timing.wall if timing is not None else None)
        return
    _add_row(table, f"{name}, wall time", timing.wall)
    _add_row(table, f"{name}, trace time (wall × speed)", timing.trace)


def _add_row(table: Table, name: str, found: Quantiles | None) -> None:
    figures = (found.mean, found.p50, found.p95, found.p99, found.max) if found is not None else ()
    table.add_row(name, *(f"{ms:,.1f}" if ms < 100 else f"{ms:,.0f}" for ms in figures))


def _totals(report: Report) -> Text:
    lines = [
        f"tokens: {report.prompt_tokens:,} prompt ({report.prompt_tokens_per_s:,.0f}/s), "
        f"{report.output_tokens:,} output ({report.output_tokens_per_s:,.0f}/s), per second of wall time"
    ]
    for source, found in (
        ("upstreams' counters", report.prefix_by_upstreams),
        ("usage in the answers", report.prefix_by_clients),
    ):
        if found is not None:
            lines.append(
                f"prefix hit ratio by {source}: {_ratio(found)} "
                f"({found.hit_tokens:,} of {found.query_tokens:,} prompt tokens)"
            )
    return Text("\n".join(lines))


def _shares(report: Report) -> Table:
    table = Table(title="Who served", title_justify="left")
    for name in ("", "name", "site", "pool"):
        table.add_column(name)
    for name in ("requests", "share", "prefix hits"):
        table.add_column(name, justify="right")
    _add_shares(table, "site", report.sites)
    _add_shares(table, "pool", report.pools)
    _add_shares(table, "replica", report.replicas)
    return table


def _add_shares(table: Table, kind: str, shares: Sequence[Share]) -> None:
    for number, share in enumerate(shares):
        table.add_row(
            "" if number else kind,
            Text(share.name or "(not told)"),
            Text(share.site),
            Text(share.pool),
            f"{share.requests:,}",
            f"{share.share:.1%}",
            _ratio(share.prefix),
            end_section=number == len(shares) - 1,
        )


def _ratio(found: PrefixHits | None) -> str:
    return "-" if found is None or found.ratio is None else f"{found.ratio:.1%}"
