"""What the pages say can be followed: links lead somewhere, commands can be typed, manifests are read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from pointsman.app.cli import main
from pointsman.core.config.document import Document
from pointsman.core.config.kinds import struct_of
from pointsman.core.config.schema import read
from pointsman.core.config.source import read_text
from pointsman.core.errors import Problem

ROOT = Path(__file__).parents[2]
HIDDEN = {"node_modules", "drills", "build", "dist", "typings"}
PAGES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in HIDDEN for part in path.relative_to(ROOT).parts)
)
FRAGMENT = "…"
"""A manifest with this sign is an excerpt, to be completed by the reader."""


@cache
def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks(page: Path) -> list[tuple[str, str]]:
    """Fenced blocks: language and content."""
    found = re.findall(r"^[ ]*```(\w*)[^\n]*\n(.*?)^[ ]*```", text_of(page), re.MULTILINE | re.DOTALL)
    return [(language, content) for language, content in found]


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of headings, as the usual renderers make them."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S))
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (ROOT / page.parent / place).resolve() if place else ROOT / page
        assert file.exists(), f"{page}: {target} does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.relative_to(ROOT)), f"{page}: {target} has no such heading"


def typed(page: Path) -> Iterator[list[str]]:
    """The words of every pointsman command in shell blocks, without those that are meant as placeholders."""
    for language, content in blocks(page):
        if language not in {"sh", "console", "bash", "shell", ""}:
            continue
        lines = content.replace("\\\n", " ").split("\n")
        if language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            if re.search(r"(^|[|;&(] *)pointsman ", line.strip()):
                yield from _words(line)


def _words(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;()"):
            commands.append([])
        elif set(word) <= set("<>"):
            commands.append(["(redirected)"])
        else:
            commands[-1].append(word)
    for words in commands:
        if words[:1] == ["pointsman"]:
            yield words[1:]


def parse(words: list[str]) -> None:
    """Let click read a command line: commands, options and their values; files need not be there."""
    command: click.Command = main
    context = click.Context(main, info_name="pointsman")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        below = command.get_command(context, words[0])
        assert below is not None, f"there is no command {words[0]}"
        command, context, words = below, click.Context(below, parent=context, info_name=words[0]), words[1:]
    if words == ["--help"] or isinstance(command, click.Group):
        return
    try:
        command.make_context(context.info_name, list(words), parent=context.parent)
    except click.BadParameter as error:
        if not re.search(r"does not exist|No such file", error.message):
            raise


@pytest.mark.parametrize("page", [page for page in PAGES if list(typed(page))], ids=str)
def test_commands_can_be_typed(page: Path) -> None:
    for words in typed(page):
        if "|" in words or any(word.startswith("[") or word.endswith("]") for word in words):
            continue  # a line that shows choices
        try:
            parse(list(words))
        except click.ClickException as error:
            raise AssertionError(f"{page}: pointsman {' '.join(words)}: {error.format_message()}") from error


def manifests(page: Path) -> Iterator[str]:
    for language, content in blocks(page):
        if language in {"yaml", "yml"} and "apiVersion:" in content and FRAGMENT not in content:
            indent = len(content) - len(content.lstrip(" "))
            yield "".join(line[indent:] if line.strip() else line for line in content.splitlines(keepends=True))


@pytest.mark.parametrize("page", [page for page in PAGES if list(manifests(page))], ids=str)
def test_manifests_are_read(page: Path) -> None:
    for number, content in enumerate(manifests(page)):
        documents = [
            document
            for document, parsed in zip(
                read_text(f"{page}[{number}].yaml", content).documents, yaml.safe_load_all(content), strict=True
            )
            if isinstance(parsed, dict)
        ]
        assert documents
        for document in documents:
            assert problems(document) == []


def problems(document: Document) -> list[str]:
    struct = struct_of(document)
    if struct is None:
        return []
    if isinstance(struct, Problem):
        return [str(struct)]
    return [str(problem) for problem in read(document, struct)[1]]


def test_what_is_wrong_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no command"):
        parse(["frobnicate"])
    with pytest.raises(click.ClickException):
        parse(["site", "drain", "eu-west", "--wiat"])
