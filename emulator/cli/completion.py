"""``cnilab completion``: tab completion for a shell."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the code that completes cnilab's commands, labs, places and styles.

    bash: `source <(cnilab completion bash)` in ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    from emulator.cli import COMPLETION, cli

    kind = get_completion_class(shell)
    assert kind is not None, "click.Choice allows only shells that click knows"
    click.echo(kind(cli, {}, "cnilab", COMPLETION).source())
