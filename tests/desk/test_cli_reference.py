"""The command line as a whole: examples that can be typed, one grammar, and a reference that is up to date."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pointsman.app.cli import main
from pointsman.app.cli_reference import examples, reference, walk

ROOT = Path(__file__).parents[2]
COMMANDS = {
    context.command_path: command
    for context, command in walk(main, click.Context(main, info_name="pointsman"))
    if command is not main
}
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}

DESTRUCTIVE = (
    "rollout abort",
    "rollout undo",
    "site drain",
    "site evacuate",
    "failover now",
    "failover freeze",
)
"""What takes something away from somebody: none of them works without a reason."""


def test_the_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(main), "docs/cli.md is out of date: make docs"


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_example_can_be_typed(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command line that help shows is parsed: words, options, their values, and files of the repository."""
    shown = examples(COMMANDS[path])
    if path not in {"pointsman trace"}:
        assert shown, f"{path} --help shows no example"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(ROOT / "examples" / "two-sites", tmp_path / "next")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    typed = [words for line in "\n".join(shown).replace("\\\n", " ").split("\n") for words in parts(line)]
    for words in typed:
        parse(words)
    assert len(typed) >= min(1, len(shown))


def parts(line: str) -> list[list[str]]:
    """The words of each pointsman command in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in {"|", "&&", ";", "&"}:
            commands.append([])
        elif word == ">":
            commands.append(["(redirected)"])
        else:
            commands[-1].append(word)
    return [words[1:] for words in commands if words[:1] == ["pointsman"]]


def parse(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main, info_name="pointsman")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        below = command.get_command(context, words[0])
        assert below is not None, f"there is no command {words[0]}"
        command, context, words = below, click.Context(below, parent=context, info_name=words[0]), words[1:]
    if words and words != ["--help"]:
        command.make_context(context.info_name, list(words), parent=context.parent)


@pytest.mark.parametrize("path", sorted(LEAVES))
def test_output_is_for_people_and_for_scripts(path: str) -> None:
    for parameter in LEAVES[path].params:
        if "--output" in parameter.opts and isinstance(parameter.type, click.Choice):
            assert "-o" in parameter.opts
            assert {"table", "json"} <= set(parameter.type.choices) or {"text", "json"} <= set(parameter.type.choices)
            asks = any("--admin-ca" in other.opts for other in LEAVES[path].params)
            assert not asks or list(parameter.type.choices) == ["table", "json", "yaml"]


@pytest.mark.parametrize("verb", DESTRUCTIVE)
def test_what_takes_away_needs_a_reason(verb: str) -> None:
    words = [*verb.split(), *([] if verb.endswith("freeze") else ["x"])]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "--reason" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_and_completes(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_POINTSMAN_COMPLETE" in result.output
    asked = {"_POINTSMAN_COMPLETE": f"{shell}_complete", "COMP_WORDS": "pointsman rollout ab", "COMP_CWORD": "2"}
    if shell == "bash":
        assert "abort" in CliRunner().invoke(main, env=asked, prog_name="pointsman").output


def test_a_control_plane_that_is_not_there_is_told() -> None:
    for words in (["status"], ["explain", "x"], ["xds", "acks"], ["apply", "-f", str(ROOT / "examples/two-sites")]):
        result = CliRunner().invoke(main, [*words, "--admin", "http://127.0.0.1:9"])
        assert result.exit_code == 1
        assert "no control plane listens at http://127.0.0.1:9" in result.output
