"""Write the files that are delivered."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kpipe.errors import ExportError, KpipeError
from kpipe.export import FORMATS
from kpipe.export.formats import CONVERTER, FLOAT, OWN
from kpipe.export.metadata import FOUND
from kpipe.export.micro.operators import WIDE
from kpipe.export.precision import settled_io, unwritten
from kpipe.fake_quant import activation_bits
from kpipe.pipeline import STAGES, AnyModel, Context, Stage
from kpipe.pipeline.examine import export_file
from kpipe.stages.fields import FormatName, MethodName, PrecisionName


@STAGES("export")
class Export(Stage):
    """Export the model, verify each file in its runtime, and deliver it; the model goes on to later stages unchanged.

    Args:
        formats: The formats, such as [tflite, onnx].
        precision: float32, or a scheme that rounds weights alone (float16, int8_dynamic, int4) for a float model; None
            for the model's own: float32, or the scheme by which it is quantized. By method: converter int8 or int16x8.
        method: Who rounds: kpipe, by a quantize stage or here, or the converter, a float model as it writes the .tflite
            file, with ranges from the calibration samples (post-training quantization). What it leaves in float is
            noted.
        name: The files' name without suffix; None for the recipe's name.
        max_accuracy_drop: Refuse to deliver a file whose accuracy on the test split, measured in the runtime, is lower
            than the baseline's by more than this fraction; None to deliver whatever comes.
        labels: The names of the classes, for the files to say; None for those that the data source tells.
        metadata: What else the files are to say, such as {author: "..."}. Each says besides what it was made of: the
            recipe's steps and key, its accuracy, the scaling of its inputs; and has all of it beside it as JSON.
        c_array: Whether the .tflite file is written as a C++ array too, with a header, for TFLite Micro.
        batch: How many samples the files take at once; None for any number; "own" for one in LiteRT and any in ONNX.
        unroll: Whether recurrent layers are written out step by step, without a loop.
        io: Whether .tflite files in whole numbers take and give these, int8 or int16, or float32; None for the former.
    """

    stage: Literal["export"] = "export"
    delivers = True
    formats: Annotated[tuple[FormatName, ...], Field(min_length=1)] = ("tflite",)
    precision: PrecisionName | None = None
    method: MethodName = OWN
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = None
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    labels: tuple[str, ...] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    c_array: bool = False
    batch: Annotated[int, Field(ge=1)] | Literal["own"] | None = "own"
    unroll: bool = False
    io: Literal["float32", "int8", "int16"] | None = None

    @model_validator(mode="after")
    def _written(self) -> Self:
        for name in self.formats:
            if fault := unwritten(self.precision, name, self.method):
                raise KpipeError(fault)
        if self.io is not None and not any(FORMATS[name].whole_ends for name in self.formats):
            raise KpipeError(f"{' and '.join(self.formats)} files have float32 inputs and outputs always; leave io out")
        for name in self.formats:
            if FORMATS[name].whole_ends:
                settled_io(self.io, self.precision or "int8", name, FORMATS[name])
        if self.c_array and "tflite" not in self.formats:
            raise KpipeError("c_array is made of the tflite file; expected tflite among the formats")
        if self.c_array and activation_bits(self.precision or FLOAT) == 16:
            raise KpipeError(f"c_array is not for {self.precision}: {WIDE}")
        if taken := [key for key in self.metadata if key in FOUND]:
            raise KpipeError(f"metadata holds {', '.join(taken)}, which kpipe finds itself; choose other keys")
        return self

    def keeps_layers(self) -> bool:
        """Tell that the model goes on as it is."""
        return True

    def run(self, artifact: AnyModel, context: Context) -> AnyModel:
        """Export and judge."""
        reference = None if self.max_accuracy_drop is None else _accuracy_before(context)
        for index, suffix in enumerate(self.formats):
            context.progress.tell(f"exporting {suffix}", index / len(self.formats))
            path = context.folder / f"{self.name or context.name}.{suffix}"
            file = export_file(
                artifact.model,
                path,
                context.data,
                self.precision,
                context.loss,
                metadata=self._metadata(artifact.model, context),
                c_array=self.c_array and suffix == "tflite",
                batch=self.batch,
                unroll=self.unroll,
                io=self.io if FORMATS[suffix].whole_ends else None,
                method=self.method,
                calibration=context.data.calibration if self.method == CONVERTER else None,
            )
            if reference is not None:
                self._judge(file, reference)
            context.record.files.append(file)
        return artifact

    def _metadata(self, model: Any, context: Context) -> dict[str, Any]:
        said: dict[str, Any] = {"recipe": context.name, "recipe_key": context.key, "stages": context.steps}
        if context.data.scale is not None:
            said["normalisation"] = {"scale": context.data.scale}
        labels = self.labels
        if labels is None and len(model.outputs) == 1 and len(context.data.labels) == model.outputs[0].shape[-1]:
            labels = context.data.labels
        return {**said, **({"labels": labels} if labels else {}), **self.metadata}

    def _judge(self, file: dict[str, Any], before: float) -> None:
        if file["accuracy"] is None:
            raise KpipeError(UNDEFINED)
        drop, most = before - file["accuracy"], self.max_accuracy_drop or 0.0
        if drop > most:
            raise ExportError(
                f"{file['path']} has accuracy {file['accuracy']:.4f} on the test split, {drop:.4f} below the "
                f"baseline's {before:.4f}; max_accuracy_drop allows {most}. Nothing is delivered. Prune less or train "
                "longer, or allow a larger drop."
            )


UNDEFINED = (
    "max_accuracy_drop judges files by their accuracy, and there is none: the labels are no classes to the loss. Leave "
    "it out."
)


def _accuracy_before(context: Context) -> float:
    """Give the accuracy of the baseline on the test split."""
    if context.baseline is None:
        raise KpipeError("max_accuracy_drop compares with a baseline, and there is none: let another step come first.")
    before = context.baseline.entry["metrics"]["accuracy"]
    if before is None:
        raise KpipeError(UNDEFINED)
    return before
