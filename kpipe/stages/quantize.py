"""Make the model compute with rounded weights and activations, or with rounded weights alone."""

import warnings
from typing import Annotated, Any, Literal, Self

import keras
import numpy as np
from pydantic import Field, model_validator

from kpipe.errors import KpipeError
from kpipe.fake_quant import SCHEMES, float_layers, wider_layers
from kpipe.graph import sites
from kpipe.pipeline import STAGES, Context, FloatModel, Misfit, QuantizedModel
from kpipe.quantize import plan_quantization, quantize
from kpipe.quantize.bits import check_bits, told_bits
from kpipe.quantize.freeze import FreezeRanges
from kpipe.stages.fields import BitsSpec, Epochs, Expressions, ImprovementName, ObserverSpec, Optimizer, SchemeName
from kpipe.stages.fitting import sift
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import RetrainingStage, train


@STAGES("quantize")
class Quantize(RetrainingStage):
    """Round weights and activations, with ranges taken from the calibration samples; train on if asked.

    Args:
        scheme: What is rounded: "int8" weights and activations to whole numbers, "w4a8" the same with weights
            of 4 bits; "int8_dynamic", "int4" weights alone, "float16" to floats of half the size; `kpipe ls schemes`
            lists them.
        exclude: Patterns of the paths of layers whose weights stay in float.
        bits: Such patterns, with the bits of these layers' weights each: 4, 8, or null for float.
        max_accuracy_drop: Give the layers whose rounding costs most 8 bits, or leave them in float, as few of them as
            keep the accuracy on the validation data so near to that of the model as it came, before any training.
        islands: What to do with layers that have no integer kernel: "warn" lets them compute in float and names them in
            the record, "refuse" is an error.
        observer: What makes the ranges of the activations: "minmax", "percentile", "mse", "moving_average", with
            arguments such as {percentile: {fraction: 0.999}}.
        improve: What to do to lose less before any training: "adaptive_rounding" or "bias_correction", on the
            calibration samples; null for nothing.
        freeze_ranges_after: After how many updates of the training the ranges stay as they are; by itself, those of
            "percentile" and "mse" always stay.
        epochs: Passes over the training data with the rounding in place (quantization-aware training); 0 for none
            (post-training quantization).
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}, or the model as it came, with teacher:
            input.
    """

    stage: Literal["quantize"] = "quantize"
    scheme: SchemeName = "int8"
    exclude: Expressions = ()
    bits: BitsSpec | None = None
    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = None
    islands: Literal["warn", "refuse"] = "warn"
    observer: ObserverSpec = "minmax"
    improve: ImprovementName | None = None
    freeze_ranges_after: Annotated[int, Field(ge=0)] | None = None
    epochs: Epochs = 0
    optimizer: Optimizer = Optimizer(learning_rate=1e-4)

    @property
    def precision(self) -> str:
        """The precision that files of the model have: of the scheme with the fewest bits that any layer has."""
        plan = SCHEMES[self.scheme]
        least = min([plan.weights, *(width for width in (self.bits or {}).values() if width is not None)])
        alike = (name for name in SCHEMES if SCHEMES[name].activations == plan.activations)
        return next(name for name in alike if SCHEMES[name].weights == least)

    @model_validator(mode="after")
    def _has_ranges(self) -> Self:
        idle = [name for name in ("observer", "freeze_ranges_after") if name in self.model_fields_set]
        if SCHEMES[self.scheme].activations is None and idle:
            raise KpipeError(
                f"{self.scheme} leaves activations in float: there are no ranges, and {' and '.join(idle)} would do "
                "nothing. Leave it out"
            )
        if self.bits is not None:
            check_bits(self.bits, self.scheme)
        return self

    def keeps_layers(self) -> bool:
        """Tell that layers are taken apart."""
        return False

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what finds no layer whose weights would be rounded, beside the features."""
        found = super().misfits(model)
        if not (self.exclude or self.bits):
            return found
        flow, bits = sites(model), self.bits or {}
        stay, misfits = sift("exclude", self.exclude, lambda some: told_bits(flow, some, None, self.scheme))
        found += misfits
        return (
            found
            + sift("bits", bits, lambda some: told_bits(flow, stay, {key: bits[key] for key in some}, self.scheme))[1]
        )

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains."""
        return (*super().only_for_training(), "freeze_ranges_after")

    def run(self, artifact: FloatModel, context: Context) -> QuantizedModel:
        """Quantize, and train on."""
        if self.improve == "adaptive_rounding" and context.holds_clusters:
            raise KpipeError(
                "adaptive_rounding takes clusters apart, and an earlier stage clustered weights. Leave improve out, or "
                "take bias_correction."
            )
        whole_numbers = SCHEMES[self.scheme].activations is not None
        with warnings.catch_warnings():
            for said in ("computes in float", "keeps weights in float", "keeps weights of 8 bits"):
                warnings.filterwarnings("ignore", message=f".* {said} in ")  # the record says it
            settings = self._settings(artifact.model, context)
            quantized = quantize(artifact.model, self.scheme, self._found_on(context), **settings)
        for layer, reason in float_layers(quantized).items():
            what = "it computes in float" if whole_numbers else "its weights stay in float"
            context.record.skip(layer, f"{what}: {reason}")
        for layer, reason in wider_layers(quantized).items():
            context.record.skip(layer, f"its weights have 8 bits: {reason}")
        teacher = teacher_of(self.distill, context, artifact.model) if self.epochs else None
        freezing = [] if self.freeze_ranges_after is None else [FreezeRanges(self.freeze_ranges_after)]
        return QuantizedModel(train(self, quantized, context, freezing, teacher=teacher))

    def _found_on(self, context: Context) -> np.ndarray | None:
        """Give the data that ranges or levels are found on, where there are any."""
        needed = SCHEMES[self.scheme].activations is not None or self.improve is not None
        return context.data.calibration if needed else None

    def _settings(self, model: keras.Model, context: Context) -> dict[str, Any]:
        """Give the arguments of `quantize`, with the bits of a plan that holds the budget where there is one."""
        fields = ("exclude", "bits", "islands", "observer", "improve")
        settings = {field: getattr(self, field) for field in fields}
        if self.max_accuracy_drop is None:
            return settings
        drop, data = self.max_accuracy_drop, context.data
        plan = plan_quantization(model, data.validation, self.scheme, drop, calibration=data.calibration, **settings)
        context.record.note(plan.sentence)
        return {**settings, "bits": plan.bits or None}
