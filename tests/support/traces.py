"""Text traces: a script of blocks, each a command with its lines, `----`, and the exact lines that must come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Run = Callable[[str, list[str]], list[str]]
"""Command and its lines to the lines that come out."""


def blocks(text: str) -> list[tuple[list[str], str, list[str], list[str]]]:
    """(comment lines, command, its lines, expected lines) per block; a block of comments has no command."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        comments = [line for line in lines if line.startswith("#")]
        body = [line for line in lines if not line.startswith("#")]
        middle = body.index("----") if "----" in body else len(body)
        command = body[0] if body else ""
        found.append((comments, command, [line.strip() for line in body[1:middle]], body[middle + 1 :]))
    return found


def check_trace(path: Path, run: Run, *, rewrite: bool) -> None:
    """Play the trace and compare, or write down what came out."""
    wanted, got = [], []
    for comments, command, lines, expected in blocks(path.read_text(encoding="utf-8")):
        if not command:
            wanted.append("\n".join(comments))
            got.append("\n".join(comments))
            continue
        out = run(command, lines)
        head = [*comments, command, *(f"  {line}" for line in lines), "----"]
        wanted.append("\n".join(head + expected))
        got.append("\n".join(head + out))
    if rewrite:
        path.write_text("\n\n".join(got) + "\n", encoding="utf-8")
        return
    assert "\n\n".join(got) == "\n\n".join(wanted)
