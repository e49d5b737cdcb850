"""`pointsman completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a SHELL complete commands and options.

    \b
    Examples:
      pointsman completion bash > ~/.local/share/bash-completion/completions/pointsman
      pointsman completion zsh > "${fpath[1]}/_pointsman"
      pointsman completion fish > ~/.config/fish/completions/pointsman.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    root = context.find_root().command
    click.echo(made(root, {}, "pointsman", "_POINTSMAN_COMPLETE").source())
