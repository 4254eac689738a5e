"""A run: stages one after another, checkpoints in between, and a record of all that was measured."""

from kpipe.pipeline.artifact import AnyModel, Artifact, FloatModel, QuantizedModel
from kpipe.pipeline.context import Baseline, Context
from kpipe.pipeline.progress import Progress, Quiet
from kpipe.pipeline.run import run
from kpipe.pipeline.source import ModelSource
from kpipe.pipeline.stage import STAGES, Misfit, Stage, check_fit, order_faults, wiring
from kpipe.pipeline.steps import Plan

__all__ = [
    "STAGES",
    "AnyModel",
    "Artifact",
    "Baseline",
    "Context",
    "FloatModel",
    "Misfit",
    "ModelSource",
    "Plan",
    "Progress",
    "QuantizedModel",
    "Quiet",
    "Stage",
    "check_fit",
    "order_faults",
    "run",
    "wiring",
]
