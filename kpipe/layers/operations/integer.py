"""Which operations of `keras.ops` the runtimes compute in whole numbers; all others compute in float."""

from collections.abc import Sequence
from dataclasses import replace

from kpipe.layers.operations.operands import classes
from kpipe.layers.rule import RULES, LayerFacts, QuantizationFact


def _register(operations: Sequence[type], fact: QuantizationFact) -> None:
    for cls in operations:
        RULES[cls] = replace(RULES.get(cls, LayerFacts()), quantization=fact)


_register(
    classes("numpy", "Reshape Transpose ExpandDims Squeeze GetItem Split Moveaxis Swapaxes Ravel Repeat")
    + classes("core", "StopGradient"),
    "same",
)
_register(classes("core", "Cast"), lambda operation: "same" if operation.dtype == "float32" else "float")
_register((*classes("numpy", "Stack"), *classes("nn", "HardSigmoid HardSilu Silu")), "split")
_register(classes("nn", "Relu Relu6"), "fused")
_register(classes("numpy", "Add Subtract Multiply Maximum Minimum Absolute Abs Exp Tanh Mean Concatenate"), "output")
_register(classes("numpy", "Max Min Amax Amin"), "output")
_register(classes("nn", "Gelu LeakyRelu Sigmoid Softmax"), "output")
_register(classes("numpy", "Matmul Einsum"), "output")
