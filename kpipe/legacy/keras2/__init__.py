"""What runs under tf_keras, in a process of its own: read old files, strip them, describe them.

The process that runs this must not load Keras 3, so it does not load the package that this folder lies in: it takes
the folder as a package of its own. Hence the relative imports, and nothing from above.
"""

import gc
import json
from pathlib import Path
from typing import Any

from .refusal import Refusal, shortened

__all__ = ["Refusal", "main"]


def main(job: str) -> None:
    """Describe the files of a job, each in the folder that the job names.

    A folder gets `model.json`, `weights.npz` and `probe.npz`; or, when the file cannot be read, `error.json`.

    Args:
        job: Path of a JSON file: a list of {path, kind, folder, objects, tfmot, samples, safe_mode}.
    """
    for file in json.loads(Path(job).read_text(encoding="utf-8")):
        try:
            _describe(file)
        except Refusal as refusal:
            _fail(file, str(refusal))
        except Exception as error:  # the file and its classes are the user's: anything may come out of them
            _fail(file, shortened(error))
        gc.collect()


def _describe(file: dict[str, Any]) -> None:
    from .describe import describe
    from .graph import run
    from .inputs import find_inputs
    from .probe import arrays_of, calls_of, save
    from .read import read
    from .strip import check_stripped, strip

    folder = Path(file["folder"])
    model, notes = read(file)
    inputs = find_inputs(model, file["samples"])
    stripped, differences = strip(model, inputs.values)
    outputs = inputs.outputs if stripped is model else run(stripped, inputs.values)
    if not differences:
        check_stripped(inputs.outputs, outputs)
    describe(stripped).save(folder, [*notes, *differences])
    save(folder, {**arrays_of(inputs, outputs), **calls_of(stripped, inputs)})


def _fail(file: dict[str, Any], text: str) -> None:
    (Path(file["folder"]) / "error.json").write_text(json.dumps({"error": text}), encoding="utf-8")
