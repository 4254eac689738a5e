"""The command's root: the verbs, and what they share."""

from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(
    name="kpipe",
    help="Make Keras 3 models small and fast on a device, and prove it on the delivered file.",
    epilog="Example: kpipe run recipes/digits.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def examples(*lines: str) -> str:
    """Give the examples of a verb as the end of its help, a line each."""
    return "\n\n".join(["[bold]Examples[/]", *(f"  $ {line}" for line in lines)])


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kpipe {version('kpipe')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold what goes before a verb."""
