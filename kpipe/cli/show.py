"""`kpipe show`: look into a model or a file."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kpipe.cli.app import app, examples
from kpipe.cli.console import aside, out, plain_errors
from kpipe.errors import KpipeError
from kpipe.export import dissect, read_metadata
from kpipe.loading import load_model
from kpipe.measure import measure


@app.command(
    epilog=examples(
        "kpipe show exported/digits/01-train/model.keras",
        "kpipe show exported/digits/digits.tflite",
        "kpipe show exported/digits/digits.onnx --json",
    )
)
def show(
    model: Annotated[Path, typer.Argument(help="A .keras, .tflite or .onnx file.")],
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Load a .keras file that holds functions as code, which then runs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts; not for .keras.")] = False,
) -> None:
    """Show a Keras model's layers with their parameters, zeros and MACs; or what a file for a device holds.

    Of a file: sizes, inputs and outputs, each operation with its types, the bytes of its constants, and the zeros and
    different values of its weight; what it computes in float although it is rounded; and what it says of itself.
    """
    with plain_errors():
        if not model.is_file():
            raise KpipeError(f"There is no file {model} (looked in {model.resolve().parent}).")
        if model.suffix.lower() == ".keras":
            if as_json:
                raise KpipeError(f"--json is for .tflite and .onnx files; received {model}. Leave it out.")
            text = str(measure(load_model(model, safe_mode=not unsafe)))
        else:
            with aside().status("reading"):
                contents, metadata = dissect(model), read_metadata(model)
            if as_json:
                text = json.dumps({**contents.to_dict(), "metadata": metadata}, indent=2)
            else:
                text = "\n".join([str(contents), *_lines(metadata)])
        out().print(text, markup=False, soft_wrap=True)


def _lines(metadata: dict[str, Any]) -> list[str]:
    """Write what a file says of itself, a line a key."""
    if not metadata:
        return []
    return [
        "",
        "says of itself:",
        *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()),
    ]
