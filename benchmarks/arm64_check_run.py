"""Run LiteRT files where this is started: the part of arm64_check.py that another processor runs.

Needs numpy and ai-edge-litert alone. For each folder that is named, `model.tflite` is run on the samples of
`inputs.npz`, arrays as the file takes them, and `outputs.npz` is written with arrays as it gives them.
"""

import platform
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def answers(folder: Path) -> tuple[str, list[np.ndarray]]:
    """Run one file sample by sample; give whose kernels did, and one array an output."""
    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    with np.load(folder / "inputs.npz") as stored:
        inputs = [stored[f"arr_{place}"] for place in range(len(stored.files))]
    outputs = interpreter.get_output_details()
    rows: list[list[np.ndarray]] = [[] for _ in outputs]
    for n in range(len(inputs[0])):
        for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(detail["index"], array[n : n + 1])
        interpreter.invoke()
        for row, detail in zip(rows, outputs, strict=True):
            row.append(interpreter.get_tensor(detail["index"]).copy())
    delegated = any(one["op_name"] == "DELEGATE" for one in interpreter._get_ops_details())
    return "XNNPACK" if delegated else "LiteRT", [np.concatenate(row) for row in rows]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        kernels, outputs = answers(Path(name))
        np.savez(Path(name) / "outputs.npz", *outputs)
        print(f"{platform.machine()} {kernels}", flush=True)
