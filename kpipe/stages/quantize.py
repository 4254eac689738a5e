"""Make the model compute with rounded weights and activations, or with rounded weights alone."""

import warnings
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kpipe.errors import KpipeError
from kpipe.fake_quant import SCHEMES, float_layers
from kpipe.pipeline import STAGES, Context, FloatModel, QuantizedModel
from kpipe.quantize import quantize
from kpipe.quantize.freeze import FreezeRanges
from kpipe.stages.fields import Epochs, Expression, ImprovementName, ObserverSpec, Optimizer, SchemeName
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import RetrainingStage, train


@STAGES("quantize")
class Quantize(RetrainingStage):
    """Round weights and activations, with ranges taken from the calibration samples; train on if asked.

    Args:
        scheme: What is rounded: "int8" weights and activations to whole numbers, "int8_dynamic" weights alone,
            "float16" weights to floats of half the size; `kpipe ls schemes` lists them.
        exclude: Patterns of the paths of layers whose weights stay in float.
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
    exclude: tuple[Expression, ...] = ()
    islands: Literal["warn", "refuse"] = "warn"
    observer: ObserverSpec = "minmax"
    improve: ImprovementName | None = None
    freeze_ranges_after: Annotated[int, Field(ge=0)] | None = None
    epochs: Epochs = 0
    optimizer: Optimizer = Optimizer(learning_rate=1e-4)

    @property
    def precision(self) -> str:
        """The precision that files of the model have."""
        return self.scheme

    @model_validator(mode="after")
    def _has_ranges(self) -> Self:
        idle = [name for name in ("observer", "freeze_ranges_after") if name in self.model_fields_set]
        if SCHEMES[self.scheme].activations is None and idle:
            raise KpipeError(
                f"{self.scheme} leaves activations in float: there are no ranges, and {' and '.join(idle)} would do "
                "nothing. Leave it out"
            )
        return self

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
            warnings.filterwarnings("ignore", message=".* (computes|keeps weights) in float in ")  # the record says it
            quantized = quantize(
                artifact.model,
                self.scheme,
                calibration=context.data.calibration if whole_numbers or self.improve else None,
                exclude=self.exclude,
                islands=self.islands,
                observer=self.observer,
                improve=self.improve,
            )
        for layer, reason in float_layers(quantized).items():
            what = "it computes in float" if whole_numbers else "its weights stay in float"
            context.record.skip(layer, f"{what}: {reason}")
        teacher = teacher_of(self.distill, context, artifact.model) if self.epochs else None
        freezing = [] if self.freeze_ranges_after is None else [FreezeRanges(self.freeze_ranges_after)]
        return QuantizedModel(train(self, quantized, context, freezing, teacher=teacher))
