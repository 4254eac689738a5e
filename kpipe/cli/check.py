"""`kpipe check`: find the faults of a recipe without running it."""

from pathlib import Path
from typing import Annotated

import typer

from kpipe.cli.app import app, examples
from kpipe.cli.console import out, plain_errors
from kpipe.errors import KpipeError, RecipeError
from kpipe.pipeline import check_fit, wiring
from kpipe.pipeline.steps import begin
from kpipe.recipe import load_recipe


@app.command(epilog=examples("kpipe check recipes/digits.yaml", "kpipe check recipes/*.yaml"))
def check(recipes: Annotated[list[Path], typer.Argument(help="The recipes, YAML files.")]) -> None:
    """Check recipes: all faults at once, each with its path; then that data and model load and fit the stages."""
    faults = []
    with plain_errors():
        for path in recipes:
            try:
                out().print(verdict(path), markup=False, soft_wrap=True)
            except KpipeError as error:
                faults.append(error)
        if faults:
            raise KpipeError("\n".join(str(error) for error in faults))


def verdict(path: Path) -> str:
    """Say of a good recipe what it does and to what; a bad one raises a `KpipeError`."""
    recipe = load_recipe(path)
    data = recipe.load_data()
    begin(recipe.head.seed, 0)  # layers without a name are called as in a run
    model = recipe.make_model(data)
    try:
        check_fit(recipe.stages, model)
    except RecipeError as error:
        raise RecipeError(f"The recipe {path} cannot run. {error}") from None
    stages = ", ".join(stage.stage for stage in recipe.stages)
    return (
        f"{path}: good. Stages {stages}; data {data.name}, {len(data.train[0])} training samples; model "
        f"{model.name}, {model.count_params():,} parameters."
    )


def kinds(stage: type) -> str:
    """Say what kinds of model a stage takes and gives.

    Example:
        >>> from kpipe.stages import Quantize
        >>> kinds(Quantize)
        'float -> quantized'
    """
    wires = wiring(stage)
    takes = " or ".join(kind.kind for kind in wires.takes)
    return f"{takes} -> {'the same' if wires.gives is None else ' or '.join(kind.kind for kind in wires.gives)}"
