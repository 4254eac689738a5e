"""Make the model compute in 8-bit integers."""

import warnings
from typing import Annotated, Literal

from pydantic import Field

from kpipe.fake_quant import float_layers
from kpipe.pipeline import STAGES, Context, FloatModel, QuantizedModel
from kpipe.quantize import quantize
from kpipe.quantize.freeze import FreezeRanges
from kpipe.stages.fields import Epochs, Expression, ObserverSpec, Optimizer, SchemeName
from kpipe.stages.teaching import teacher_of
from kpipe.stages.training import RetrainingStage, train


@STAGES("quantize")
class Quantize(RetrainingStage):
    """Round weights and activations to integers, with ranges taken from the calibration samples; train on if asked.

    Args:
        scheme: The integers: "int8".
        exclude: Patterns of the paths of layers whose weights stay in float.
        islands: What to do with layers that have no integer kernel: "warn" lets them compute in float and names them in
            the record, "refuse" is an error.
        observer: What makes the ranges of the activations: "minmax", "percentile", "mse", "moving_average", with
            arguments such as {percentile: {fraction: 0.999}}.
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
    freeze_ranges_after: Annotated[int, Field(ge=0)] | None = None
    epochs: Epochs = 0
    optimizer: Optimizer = Optimizer(learning_rate=1e-4)

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains."""
        return (*super().only_for_training(), "freeze_ranges_after")

    def run(self, artifact: FloatModel, context: Context) -> QuantizedModel:
        """Quantize, and train on."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* computes in float in ")  # the record says it
            quantized = quantize(
                artifact.model,
                self.scheme,
                calibration=context.data.calibration,
                exclude=self.exclude,
                islands=self.islands,
                observer=self.observer,
            )
        for layer, reason in float_layers(quantized).items():
            context.record.skip(layer, f"it computes in float: {reason}")
        teacher = teacher_of(self.distill, context, artifact.model) if self.epochs else None
        freezing = [] if self.freeze_ranges_after is None else [FreezeRanges(self.freeze_ranges_after)]
        return QuantizedModel(train(self, quantized, context, freezing, teacher=teacher))
