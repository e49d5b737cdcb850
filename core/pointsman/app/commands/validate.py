"""`pointsman validate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pointsman.app.commands.shared import EXIT_REFUSED, TABLE, emit, folder_argument, output_option, refuse
from pointsman.app.offline import read_plan
from pointsman.core.errors import ConfigError


@click.command()
@folder_argument
@output_option
def validate(folder: Path, output: str) -> None:
    """Check a FOLDER of manifests without starting anything.

    \b
    Exit code: 0 good, 1 refused (every problem is listed with file, line and field).
    Example:
      pointsman validate examples/two-sites
    """

    try:
        manifests, plan = read_plan(folder)
    except ConfigError as error:
        if output != TABLE:
            problems = [
                {"file": p.file, "line": p.line, "field": p.field, "what": p.what, "mend": p.mend}
                for p in error.problems
            ]
            emit({"accepted": False, "problems": problems}, output, list)
            sys.exit(EXIT_REFUSED)
        refuse("validate", error)
    counts = {
        "gateways": len(plan.gateways),
        "pools": len(plan.pools),
        "sites": len(plan.sites),
        "endpoints": sum(len(pool.endpoints()) for pool in plan.pools),
    }
    ignored = [{"file": i.file, "line": i.line, "kind": i.kind, "why": i.why} for i in manifests.ignored]

    def lines() -> Iterator[str]:
        for left_out in manifests.ignored:
            yield f"{left_out.file}:{left_out.line}: {left_out.kind} {left_out.name} is ignored: {left_out.why}"
        yield f"{folder}: good: " + ", ".join(f"{count} {name}" for name, count in counts.items())

    emit({"accepted": True, **counts, "ignored": ignored}, output, lines)
