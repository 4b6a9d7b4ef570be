"""`opsocket completion`: the script that makes a shell complete the command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    For bash: opsocket completion bash > ~/.local/share/bash-completion/completions/opsocket
    """
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(ctx.find_root().command, {}, "opsocket", "_OPSOCKET_COMPLETE").source())
