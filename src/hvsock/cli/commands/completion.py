"""`hvsock completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hvsock.cli.main import COMPLETION_VARIABLE, PROGRAM, cli


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and names in SHELL.

    \b
    bash: hvsock completion bash > ~/.local/share/bash-completion/completions/hvsock
    zsh:  hvsock completion zsh > "${fpath[1]}/_hvsock"
    fish: hvsock completion fish > ~/.config/fish/completions/hvsock.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(cli, {}, PROGRAM, COMPLETION_VARIABLE).source())
