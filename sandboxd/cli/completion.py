"""`sandboxd completion`: the scripts by which a shell completes our words."""

import click
from click.shell_completion import get_completion_class

EXAMPLES = """\b
Examples:
  source <(sandboxd completion bash)                          this shell only
  sandboxd completion bash > ~/.local/share/bash-completion/completions/sandboxd
  sandboxd completion zsh > ~/.zfunc/_sandboxd                with ~/.zfunc in $fpath
  sandboxd completion fish > ~/.config/fish/completions/sandboxd.fish
"""


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    complete = get_completion_class(shell)
    assert complete is not None  # noqa: S101 - the choices above are the ones that click has
    root = context.find_root()
    click.echo(complete(root.command, {}, "sandboxd", "_SANDBOXD_COMPLETE").source())
