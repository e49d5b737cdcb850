"""Rows of results kept in a file, so that a long study can be stopped and gone on with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pointsman.bench.report import Row, as_json
from pointsman.core.errors import ConfigError, Problem


def load_rows(path: Path) -> list[Row]:
    """The rows of a file, none when there is no file. Raises `ConfigError` for one that is not ours."""
    if not path.exists():
        return []
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return msgspec.convert(data.get("rows"), list[Row])
    except (OSError, msgspec.MsgspecError) as error:
        mend = "name a file that `--json` wrote, or a new one"
        raise ConfigError(Problem(file=str(path), line=0, field="rows", what=str(error), mend=mend)) from error


def save_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write them whole; the file is never half written."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(as_json(rows))) + b"\n")
    new.replace(path)


def missing(rows: Iterable[Row], scenario: str, policies: Iterable[str], seeds: Sequence[int]) -> list[str]:
    """The policies that have no row in this scenario with these seeds."""
    done = {row.policy for row in rows if row.scenario == scenario and row.seeds == tuple(seeds)}
    return [policy for policy in policies if policy not in done]


def merged(old: Iterable[Row], new: Iterable[Row], order: Sequence[str]) -> list[Row]:
    """All rows, new ones in place of old ones of the same scenario and policy; scenarios in the order in which they
    came first, their policies in `order` (unknown ones last)."""
    found: dict[tuple[str, str], Row] = {}
    for row in (*old, *new):
        found[row.scenario, row.policy] = row
    scenarios = list(dict.fromkeys(scenario for scenario, _ in found))
    place = {policy: number for number, policy in enumerate(order)}
    return sorted(
        found.values(), key=lambda row: (scenarios.index(row.scenario), place.get(row.policy, len(place)), row.policy)
    )
