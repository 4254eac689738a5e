"""Prune, cluster, distil, quantize and export Keras 3 models to LiteRT and ONNX, and prove it on the delivered file."""

import os
from importlib.metadata import version

try:
    import keras

    _backend = keras.backend.backend()
except ModuleNotFoundError:  # Keras could not load the backend that was asked for
    _backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if _backend == "tensorflow":
        raise
if _backend != "tensorflow":
    raise ImportError(
        f"kpipe needs the TensorFlow backend of Keras; Keras is set to {_backend!r}. Set the environment variable "
        'KERAS_BACKEND=tensorflow before Keras is imported, or "backend": "tensorflow" in ~/.keras/keras.json.'
    )

from kpipe import callbacks, layers, legacy, patterns, schedules
from kpipe import costs as costs
from kpipe.cluster import cluster_weights
from kpipe.copies import to_float32
from kpipe.distill import distill
from kpipe.errors import ExportError, KpipeError, NoEffectWarning, RecipeError, SurgeryError
from kpipe.export import benchmark, export, join_signatures, verify
from kpipe.graph import functionalize
from kpipe.measure import measure
from kpipe.quantize import plan_quantization, quantization_sensitivity, quantize
from kpipe.recipe import load_recipe
from kpipe.report import report
from kpipe.saliency import CRITERIA, Evidence
from kpipe.structured import (
    FilterPlan,
    bypassable,
    plan_filters,
    plan_heads,
    prune_filters,
    prune_heads,
    reestimate_batch_norm,
    remove_layers,
    sensitivity,
)
from kpipe.unstructured import find_ticket, prune_low_magnitude, prune_weights, strip_pruning

__version__ = version("kpipe")

__all__ = [
    "CRITERIA",
    "Evidence",
    "ExportError",
    "FilterPlan",
    "KpipeError",
    "NoEffectWarning",
    "RecipeError",
    "SurgeryError",
    "benchmark",
    "bypassable",
    "callbacks",
    "cluster_weights",
    "distill",
    "export",
    "find_ticket",
    "functionalize",
    "join_signatures",
    "layers",
    "legacy",
    "load_recipe",
    "measure",
    "patterns",
    "plan_filters",
    "plan_heads",
    "plan_quantization",
    "prune_filters",
    "prune_heads",
    "prune_low_magnitude",
    "prune_weights",
    "quantization_sensitivity",
    "quantize",
    "reestimate_batch_norm",
    "remove_layers",
    "report",
    "schedules",
    "sensitivity",
    "strip_pruning",
    "to_float32",
    "verify",
]
