"""Faults that no stage has alone: what cannot stand together in one recipe."""

from collections.abc import Sequence

from kpipe.export.formats import CONVERTER, FORMATS
from kpipe.fake_quant import activation_bits
from kpipe.pipeline import FloatModel, QuantizedModel, Stage, wiring
from kpipe.pipeline.steps import losses_of
from kpipe.pipeline.task import ENTROPIES
from kpipe.stages import Export, Quantize
from kpipe.stages.cutting import CuttingStage


def delivery_faults(stages: Sequence[Stage], name: str) -> list[str]:
    """Find exports that would deliver a file of the same name twice.

    Args:
        stages: The stages in their order.
        name: The recipe's name, which an export takes that has none of its own.

    Returns:
        The faults, each with its path.

    Example:
        >>> delivery_faults([Export(), Export(name="a")], "a")
        ['stages[1].name: stages[0] delivers a.tflite too; give each export a name of its own']
    """
    faults = []
    seen: dict[str, int] = {}
    for index, stage in enumerate(stages):
        if isinstance(stage, Export):
            for suffix in stage.formats:
                file = f"{stage.name or name}.{suffix}"
                if file in seen:
                    other = f"stages[{seen[file]}]" if seen[file] != index else "the same stage"
                    faults.append(
                        f"stages[{index}].name: {other} delivers {file} too; give each export a name of its own"
                    )
                seen[file] = index
    return faults


def precision_faults(stages: Sequence[Stage]) -> list[str]:
    """Find exports in a precision, or by a method, that the model they get cannot have.

    Args:
        stages: The stages in their order.

    Returns:
        The faults, each with its path.

    Example:
        >>> precision_faults([Export(precision="w4a8")])
        ['stages[0].precision: w4a8 needs a quantized model; put a quantize stage before this one']
        >>> precision_faults([Export(precision="int8", formats=("tflite", "onnx"))])
        ['stages[0].precision: int8 needs a quantized model; put a quantize stage before this one']
        >>> precision_faults([Export(precision="int8")])[0].endswith(", or say method: converter")
        True
        >>> precision_faults([Export(precision="int8", method="converter")])
        []
    """
    faults = []
    kind: type = FloatModel
    own = "float32"
    for index, stage in enumerate(stages):
        own = stage.precision if isinstance(stage, Quantize) else own
        if isinstance(stage, Export) and (fault := _export_fault(stage, own, kind is QuantizedModel)):
            faults.append(f"stages[{index}].{fault}")
        gives = wiring(type(stage)).gives
        if gives is not None and kind not in gives:
            kind = gives[0]
    return faults


def _export_fault(stage: Export, own: str, quantized: bool) -> str | None:
    """Say what about an export does not go with the model that it gets, which a stage has quantized or none."""
    asked = stage.precision
    if stage.method == CONVERTER:
        why = f"method: {CONVERTER} rounds a float model, and this one is quantized by {own}"
        return f"{why}; leave method and precision out, or export before quantize" if quantized else None
    if asked is None:
        return None
    if quantized and asked != own:
        why = f"precision: a model quantized by {own} is written in {own} only, not in {asked}"
        return f"{why}; leave precision out, or export before quantize"
    if not quantized and activation_bits(asked) is not None:
        able = all(asked in FORMATS[name].precisions_by(CONVERTER) for name in stage.formats)
        how = f", or say method: {CONVERTER}" if able else ""
        return f"precision: {asked} needs a quantized model; put a quantize stage before this one{how}"
    return None


def accuracy_faults(stages: Sequence[Stage]) -> list[str]:
    """Find limits of lost accuracy where a loss is named to which labels are no classes.

    Args:
        stages: The stages in their order.

    Returns:
        The faults, each with its path.

    Example:
        >>> from kpipe.stages import Train
        >>> accuracy_faults([Train(loss="huber"), Export(max_accuracy_drop=0.01)])
        ['stages[1].max_accuracy_drop: to the loss huber no label is a class, so there is no accuracy; leave it out']
    """
    faults = []
    for index, (stage, loss) in enumerate(zip(stages, losses_of(stages)[1:], strict=True)):
        field = None
        if isinstance(stage, Export) and stage.max_accuracy_drop is not None:
            field = "max_accuracy_drop"
        elif isinstance(stage, CuttingStage) and stage.until is not None:
            field = "until"
        if field is not None and loss not in ("auto", *ENTROPIES):
            why = f"to the loss {loss} no label is a class, so there is no accuracy"
            faults.append(f"stages[{index}].{field}: {why}; leave it out")
    return faults
