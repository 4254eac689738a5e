"""`kpipe show`: look into a model or a file."""

from pathlib import Path
from typing import Annotated

import keras
import typer

from kpipe.cli.app import app, examples
from kpipe.cli.console import out, plain_errors
from kpipe.errors import KpipeError
from kpipe.export import inspect
from kpipe.measure import measure
from kpipe.pipeline.context import load_model


@app.command(
    epilog=examples("kpipe show exported/digits/01-train/model.keras", "kpipe show exported/digits/digits.tflite")
)
def show(model: Annotated[Path, typer.Argument(help="A .keras, .tflite or .onnx file.")]) -> None:
    """Show a Keras model's layers with their parameters, zeros and MACs; or a file's operations and their types."""
    with plain_errors():
        if not model.is_file():
            raise KpipeError(f"There is no file {model} (looked in {model.resolve().parent}).")
        text = str(measure(_loaded(model)) if model.suffix == ".keras" else inspect(model))
        out().print(text, markup=False, soft_wrap=True)


def _loaded(path: Path) -> keras.Model:
    try:
        return load_model(path)
    except Exception as error:  # Keras raises many kinds for a file that is no model
        raise KpipeError(f"{path} is not a Keras model file that can be loaded: {error}") from error
