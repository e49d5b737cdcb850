"""`pointsman validate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from pointsman.app.commands.shared import EXIT_REFUSED, folder_argument, refuse
from pointsman.app.offline import read_plan
from pointsman.core.errors import ConfigError


@click.command()
@folder_argument
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
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
        if output == "json":
            problems = [
                {"file": p.file, "line": p.line, "field": p.field, "what": p.what, "mend": p.mend}
                for p in error.problems
            ]
            click.echo(json.dumps({"accepted": False, "problems": problems}, indent=1))
            sys.exit(EXIT_REFUSED)
        refuse("validate", error)
    counts = {
        "gateways": len(plan.gateways),
        "pools": len(plan.pools),
        "sites": len(plan.sites),
        "endpoints": sum(len(pool.endpoints()) for pool in plan.pools),
    }
    if output == "json":
        ignored = [{"file": i.file, "line": i.line, "kind": i.kind, "why": i.why} for i in manifests.ignored]
        click.echo(json.dumps({"accepted": True, **counts, "ignored": ignored}, indent=1))
        return
    for left_out in manifests.ignored:
        click.echo(f"{left_out.file}:{left_out.line}: {left_out.kind} {left_out.name} is ignored: {left_out.why}")
    click.echo(f"{folder}: good: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
