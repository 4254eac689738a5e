"""A finished run with known numbers, as the pipeline writes it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
name: digits
seed: 0
data: {source: digits}
model: {factory: "kpipe.models:digits_cnn"}
stages:
  - {stage: train, epochs: 6}
  - {stage: prune_filters, target: {macs: 0.5}, criterion: taylor, epochs: 3}
  - {stage: prune_weights, schedule: {polynomial_decay: {final_sparsity: 0.6}}, epochs: 3}
  - {stage: quantize, scheme: int8, epochs: 2}
  - {stage: export, formats: [tflite, onnx], max_accuracy_drop: 0.01}
"""

# stage, accuracy, parameters, MACs, tflite bytes, gzip, median, onnx bytes, onnx median, seconds
STAGES = (
    ("train", 0.9778, 93_322, 1_204_480, 378_912, 350_144, 0.0742, 376_020, 0.0931, 21.4),
    ("prune_filters", 0.9750, 24_170, 391_168, 101_220, 93_388, 0.0311, 98_771, 0.0522, 9.8),
    ("prune_weights", 0.9722, 24_170, 391_168, 101_220, 47_102, 0.0309, 98_771, 0.0519, 8.1),
    ("quantize", 0.9722, 24_170, 391_168, 30_544, 15_870, 0.0163, 33_402, 0.0291, 6.6),
    ("export", 0.9722, 24_170, 391_168, 30_544, 15_870, 0.0164, 33_402, 0.0290, 1.9),
)
LAYERS = (  # layer, kind, channels before and after, parameters before and after, zeros after pruning
    ("conv1", "Conv2D", (32, 16), (320, 160), 96),
    ("bn1", "BatchNormalization", (32, 16), (128, 64), 0),
    ("conv2", "Conv2D", (64, 28), (18_496, 4_060), 2_436),
    ("a_long_layer_name_of_a_third_convolution", "Conv2D", (64, 36), (36_928, 9_108), 5_465),
    ("pool", "MaxPooling2D", (64, 36), (0, 0), 0),
    ("dense", "Dense", (128, 64), (36_160, 10_128), 6_077),
    ("logits", "Dense", (10, 10), (1_290, 650), 390),
)


def _layers(index: int) -> list[dict[str, Any]]:
    after = int(index > 0)
    return [
        {
            "layer": name,
            "kind": kind,
            "params": params[after],
            "nonzeros": params[after] - (zeros if index > 1 else 0),
            "macs": None if kind != "Conv2D" else 9 * params[after],
            "bytes": 4 * params[after],
            "channels": channels[after],
            "kernel_params": (
                kernel := params[after] - (channels[after] if kind in ("Conv2D", "Dense") else params[after])
            ),
            "kernel_nonzeros": kernel - (zeros if index > 1 else 0),
        }
        for name, kind, channels, params, zeros in LAYERS
    ]


def _entry(index: int) -> dict[str, Any]:
    stage, accuracy, params, macs, size, zipped, median, onnx_size, onnx_median, seconds = STAGES[index]
    last = stage == "export"
    precision = "float32" if index < 3 else "int8"
    layers = _layers(index)
    epochs = (6, 3, 3, 2, 0)[index]
    curve = [0.9 + 0.01 * index + 0.07 * (1 - 0.5**epoch) for epoch in range(epochs)]
    files = [
        {
            "path": f"{'digits' if last else 'model'}.{suffix}",
            "format": suffix,
            "precision": precision,
            "bytes": written,
            "gzip_bytes": round(written * zipped / size),
            "zstd_bytes": round(0.95 * written * zipped / size),
            "accuracy": accuracy,
            "agreement": {
                "max_relative_error": 2.1e-07 if index < 3 else 0.0041,
                "within_two_steps": None if index < 3 else 1.0,
                "max_steps": None if index < 3 else 1.2,
                "argmax_agreement": 0.9961,
                "samples": 256,
                "source": "data",
            },
            "latency": {"median_ms": took, "p90_ms": round(1.2 * took, 4)},
        }
        for suffix, written, took in (("tflite", size, median), ("onnx", onnx_size, onnx_median))
    ]
    return {
        "index": index + 1,
        "stage": stage,
        "name": f"{index + 1:02d}-{stage}",
        "key": f"{index}" * 64,
        "config": {
            "stage": stage,
            "epochs": epochs,
            **({"target": {"macs": 0.5}} if stage == "prune_filters" else {}),
            **({"max_accuracy_drop": 0.01} if last else {}),
        },
        "artifact": {"kind": "file" if last else "quantized" if index == 3 else "float", "path": "model.keras"},
        "metrics": {"accuracy": accuracy, "loss": None if last else 0.0801 + 0.01 * index},
        "measure": {
            "params": params,
            "nonzeros": sum(layer["nonzeros"] for layer in layers),
            "macs": macs,
            "bytes": 4 * (params or 0),
            "sparsity": 0.6 if index > 1 else 0.0,
            "layers": layers,
        },
        "files": files,
        "notes": ["The head keeps its 10 channels: it is an output of the model."] if index == 1 else [],
        "skipped": [{"layer": f"bn{number}", "reason": "BatchNormalization has no kernel"} for number in (1, 2)]
        if index == 2
        else [],
        "seconds": seconds,
        "history": {
            "loss": [2.0 * 0.5**epoch + 0.05 for epoch in range(epochs)],
            "val_loss": [2.1 * 0.5**epoch + 0.09 for epoch in range(epochs)],
            "accuracy": [value + 0.01 for value in curve],
            "val_accuracy": curve,
        }
        if epochs
        else {},
        "details": {"weights": [{"path": "conv1/kernel", "shape": [3, 3, 1, 16], "sparsity": 0.6}]}
        if index == 2
        else {},
    }


def _metrics() -> dict[str, Any]:
    stages = [_entry(index) for index in range(len(STAGES))]
    return {
        "name": "digits",
        "kpipe": "0.1.0",
        "recipe_key": "f" * 64,
        "data": {"source": "digits", "train": 1294, "validation": 143, "test": 360},
        "environment": {"python": "3.11.9", "keras": "3.15.1", "tensorflow": "2.21.0", "cpu": "an example CPU"},
        "stages": stages,
        "delivery": [{"path": file["path"], "format": file["format"]} for file in stages[-1]["files"]],
        "summary": {
            "baseline": "01-train",
            "file": "digits.tflite",
            "smaller": 378_912 / 30_544,
            "smaller_gzip": 350_144 / 15_870,
            "smaller_zstd": 350_144 / 15_870,
            "faster": 0.0742 / 0.0164,
            "accuracy_baseline": 0.9778,
            "accuracy_delivered": 0.9722,
            "accuracy_drop": 0.0056,
        },
    }


METRICS = _metrics()


@pytest.fixture
def metrics() -> dict[str, Any]:
    """Give a fresh copy of the metrics, to be changed at will."""
    return copy.deepcopy(METRICS)


@pytest.fixture
def write(tmp_path: Path):
    """Give a function that writes metrics into a run directory and returns it."""

    def written(content: Any, recipe: str | None = RECIPE) -> Path:
        folder = tmp_path / "digits"
        folder.mkdir(exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
        (folder / "latency.json").write_text(json.dumps({"threads": 1, "runs": 50}), encoding="utf-8")
        if recipe is not None:
            (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        return folder

    return written
