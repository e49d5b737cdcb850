"""A series of drills: the set-up and the clients are started once, the runs follow each other."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from pointsman.app.drill.clients import clients
from pointsman.app.drill.fleet import drill_fleet
from pointsman.app.drill.kinds import KINDS, Kind
from pointsman.app.drill.run import Drill, Limits
from pointsman.core.errors import PointsmanError
from pointsman.failover.report import Row, Run, markdown, misses, run_text, table_text

LOAD_PER_S: Final = 100.0
"""At the gateway of the site that fails: what the times of the bars are asked for at."""
OTHER_SHARE: Final = 0.5
"""Of that, at the other gateway. Where its clients are the ones that are judged the two are exchanged."""


class ReportError(PointsmanError):
    """A folder with reports cannot be read or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What is to be run: each of `kinds` `runs` times at `site`."""

    kinds: Sequence[Kind]
    site: str
    runs: int = 1
    tls: bool = False
    limits: Limits
    load_per_s: float = LOAD_PER_S


async def drills(series: Series) -> AsyncIterator[tuple[Run, str]]:
    """The figures and the picture of each run, when it has ended. A run that is aborted ends the series.

    Raises:
        PointsmanError: the set-up does not start or does not come to rest.
    """
    with tempfile.TemporaryDirectory(prefix="pointsman-drill-") as folder:
        async with drill_fleet(Path(folder), primary=series.site, tls=series.tls) as fleet:
            for others_only in (False, True):
                wanted = [kind for kind in series.kinds if kind.others_only is others_only]
                if not wanted:
                    continue
                much, less = series.load_per_s, series.load_per_s * OTHER_SHARE
                other = fleet.other(series.site)
                per_s = {series.site: less, other: much} if others_only else {series.site: much, other: less}
                async with clients(fleet.gateways, per_s) as watch:
                    drill = Drill(fleet, watch, series.limits)
                    for kind in wanted:
                        for number in range(1, series.runs + 1):
                            run, picture = await drill.run(kind, series.site, number)
                            yield run, picture
                            if run.aborted:
                                return


def rows(runs: Sequence[Run]) -> list[Row]:
    """The runs by kind, in the order of the catalogue."""
    return [
        Row(kind=name, bars=kind.bars, runs=tuple(run for run in runs if run.kind == name))
        for name, kind in KINDS.items()
        if any(run.kind == name for run in runs)
    ]


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """The report for programs; times are seconds after the fault."""
    return {
        "simulated": "model servers are simulated, everything else is real",
        "met": all(row.met for row in rows(runs)),
        "drills": [
            {
                "kind": row.kind,
                "bar": row.bars.text(),
                "met": row.met,
                "rto_p50_s": row.rto_p50_s,
                "rto_max_s": row.rto_max_s,
                "runs": [{**msgspec.to_builtins(run), "missed": misses(run, row.bars)} for run in row.runs],
            }
            for row in rows(runs)
        ],
    }


class ReportFolder:
    """A folder that collects runs: one JSON and one SVG file each; more may come later.

    Raises:
        ReportError: from every method, when the folder cannot be written or a file in it is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, run: Run, picture: str) -> None:
        """Keep one run, under a number of its own."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = 1
            while (path := self._folder / f"{run.kind}-{number}.json").exists():
                number += 1
            path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1))
            path.with_suffix(".svg").write_text(picture, encoding="utf-8")
        except OSError as error:
            raise ReportError(f"the report cannot be written: {error}") from error

    def runs(self) -> list[Run]:
        """All that were kept."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Run))
            except (OSError, msgspec.MsgspecError) as error:
                raise ReportError(f"{path} is no report of a drill: {error}; take it out of the folder") from error
        return sorted(found, key=lambda run: run.number)

    def write_table(self) -> None:
        """`report.md` and `report.txt` over everything that was kept."""
        runs = self.runs()
        try:
            (self._folder / "report.md").write_text(markdown(rows(runs)), encoding="utf-8")
            text = [run_text(run, KINDS[run.kind].bars) for run in runs if run.kind in KINDS]
            (self._folder / "report.txt").write_text(
                "\n\n".join([table_text(rows(runs)), *text]) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise ReportError(f"the report cannot be written: {error}") from error
