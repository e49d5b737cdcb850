"""The reference of the command line as Markdown, made from the commands: `python -m pointsman.app.cli_reference`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from pointsman.app.cli import main
from pointsman.app.commands.shared import EXIT_CODES

HEAD: Final = """# The command line

Made from the commands themselves by `make docs`; a test fails when it is out of date. `pointsman COMMAND --help` says
the same.

Commands that ask a control plane take `--admin URL`, `--token-file FILE` and `--admin-ca FILE` (or the environment
variables `POINTSMAN_ADMIN`, `POINTSMAN_TOKEN_FILE`, `POINTSMAN_ADMIN_CA`): the words are the same for one on this
machine and for one that is far away. `-o json` and `-o yaml` are for scripts; what is for people (`-o table`) may
change. Colours and progress bars appear on a terminal only, and colours not with `NO_COLOR` set.
"""

REPEATED: Final = frozenset({"--admin", "--token-file", "--admin-ca", "-h, --help"})
"""Options that the head explains."""


def reference(root: click.Command) -> str:
    """All commands, options and exit codes."""
    lines = [HEAD, "## Exit codes", "", "| code | means |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES]
    commands = list(walk(root, click.Context(root, info_name="pointsman")))
    lines += ["", "## Commands", ""]
    for context, command in commands:
        if not isinstance(command, click.Group):
            path = context.command_path
            lines.append(f"- [`{path}`](#{path.replace(' ', '-')}): {command.get_short_help_str(200)}")
    for context, command in commands:
        if command is not root:
            lines += ["", *_section(context, command)]
    return "\n".join(lines) + "\n"


def walk(command: click.Command, context: click.Context) -> Iterator[tuple[click.Context, click.Command]]:
    """A command and all below it, each with its context."""
    yield context, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from walk(below, click.Context(below, parent=context, info_name=name))


def examples(command: click.Command) -> list[str]:
    """The command lines below `Example:` in the help of a command."""
    _, _, found = _parts(command)
    return found


def _parts(command: click.Command) -> tuple[list[str], list[str], list[str]]:
    """Paragraphs, exit codes and examples of a command's help."""
    text: list[str] = []
    codes: list[str] = []
    shown: list[str] = []
    place = text
    for line in inspect.cleandoc(command.help or "").split("\n"):
        stripped = line.strip()
        if stripped == "\b":
            continue
        if stripped.startswith("Exit code:"):
            place = codes
            stripped = stripped.removeprefix("Exit code:").strip()
        elif stripped in {"Example:", "Examples:"}:
            place = shown
            continue
        if place is text:
            text.append(line)
        elif stripped:
            place.append(stripped)
    return "\n".join(text).strip().split("\n"), codes, shown


def _section(context: click.Context, command: click.Command) -> Iterator[str]:
    text, codes, shown = _parts(command)
    depth = "##" if context.parent and context.parent.parent is None else "###"
    yield f"{depth} {context.command_path}"
    yield ""
    yield from text
    if not isinstance(command, click.Group):
        yield ""
        yield f"`{' '.join([context.command_path, *command.collect_usage_pieces(context)])}`"
    rows = [row for parameter in command.params if (row := _option_row(parameter, context)) is not None]
    if rows:
        yield from ("", "| option | default | |", "|---|---|---|", *rows)
    if any("--admin" in parameter.opts for parameter in command.params):
        yield from ("", "It asks a control plane: `--admin`, `--token-file`, `--admin-ca`.")
    if codes:
        yield from ("", f"Exit code: {' '.join(codes)}")
    if shown:
        yield from ("", "```sh", *shown, "```")


def _option_row(parameter: click.Parameter, context: click.Context) -> str | None:
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return None
    record = parameter.get_help_record(context)
    if record is None or ", ".join(parameter.opts) in REPEATED:
        return None
    name, told = record
    told = told.partition("  [")[0] if "  [" in told else "" if told.startswith("[") else told
    return f"| `{_cell(name)}` | {_cell(_default(parameter, context))} | {_cell(told)} |"


def _default(parameter: click.Option, context: click.Context) -> str:
    if parameter.required:
        return "required"
    value: Any = parameter.get_default(context)
    if parameter.is_flag or value is None or value in ("", ()) or callable(value) or "Sentinel" in type(value).__name__:
        return ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    Path("docs/cli.md").write_text(reference(main), encoding="utf-8")
