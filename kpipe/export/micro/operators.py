"""What TFLite Micro can run: the operators that it has a kernel for, and how its resolver names them."""

from collections.abc import Iterator
from typing import Any

from kpipe.errors import ExportError
from kpipe.export.litert.text import first_lines, text
from kpipe.export.native import litert_fault

OPERATORS = frozenset(
    "ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS "
    "BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV "
    "DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED "
    "GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG "
    "LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG "
    "NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE "
    "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX "
    "SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM "
    "SVDF TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE".split()
)
"""Those registered in its release of October 2026; what belongs to no file of LiteRT's own is left out."""

SPELT = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
"""Names that the resolver spells in a way of its own."""

KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")


WIDE = (
    "TFLite Micro computes in 16 bits with some of its operators only, and kpipe does not know with which; make arrays "
    "of int8 or float32 files"
)
"""Why no array is made of files with activations of 16 bits."""


def resolver_call(operator: str) -> str:
    """Name the method by which TFLite Micro's resolver is given an operator.

    Example:
        >>> resolver_call("FULLY_CONNECTED"), resolver_call("DEPTHWISE_CONV_2D"), resolver_call("RELU6")
        ('AddFullyConnected', 'AddDepthwiseConv2D', 'AddRelu6')
        >>> resolver_call("SPLIT_V"), resolver_call("CUMSUM")
        ('AddSplitV', 'AddCumSum')
    """
    words = [word if word[0].isdigit() else word.capitalize() for word in operator.split("_")]
    return "Add" + SPELT.get(operator, "".join(words))


def read(content: bytes) -> Any:
    """Read a LiteRT file as a tree of objects, or raise an `ExportError`."""
    from ai_edge_litert import schema_py_generated as schema

    if (fault := litert_fault(content)) is not None:
        raise ExportError(f"This {fault}.")
    try:
        return schema.ModelT.InitFromPackedBuf(content, 0)
    except Exception as error:  # a broken flatbuffer fails anywhere in the generated code
        raise ExportError(f"This is a broken LiteRT file: {first_lines(error)}") from error


def operators_of(model: Any) -> list[str]:
    """List the operators that TFLite Micro needs for a file, each once, by name.

    Args:
        model: The file as `read` gives it.

    Returns:
        Names such as "FULLY_CONNECTED", in alphabetical order.

    Raises:
        ExportError: When TFLite Micro lacks one, or what it does with one: floats beside 8-bit weights, 16-bit floats,
            sizes that are open. All of them are named. Or where one gives whole numbers of 16 bits.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    found, faults = set(), []
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = number == schema.BuiltinOperator.CUSTOM
            name = f"CUSTOM {text(code.customCode)}" if custom else names[number]
            found.add(name)
            if name not in OPERATORS:
                faults.append(f"it has no {name}")
            faults += _type_faults(schema, graph, operator, name)
            if any(graph.tensors[index].type == schema.TensorType.INT16 for index in operator.outputs):
                raise ExportError(f"{WIDE}.")
    if any(-1 in (tensor.shapeSignature if tensor.shapeSignature is not None else ()) for tensor in _tensors(model)):
        faults.append("it takes no open sizes; export with a fixed batch")
    if faults:
        raise ExportError(
            f"TFLite Micro cannot run this file: {'; '.join(dict.fromkeys(faults))}. Replace the layers that lead to "
            "these operators, or export float32 or int8."
        )
    return sorted(found)


def _tensors(model: Any) -> Iterator[Any]:
    for graph in model.subgraphs:
        yield from graph.tensors


def _type_faults(schema: Any, graph: Any, operator: Any, name: str) -> Iterator[str]:
    """Say what about the types of an operation has no kernel."""
    kinds = schema.TensorType
    types = [graph.tensors[index].type for index in (*operator.inputs, *operator.outputs) if index >= 0]
    if kinds.FLOAT16 in types:
        yield f"its {name} takes no 16-bit floats"
    whole = {kinds.INT8, kinds.INT4}
    if name in KERNELS and types[-1] == kinds.FLOAT32 and whole & set(types[:-1]):
        yield f"its {name} takes no floats together with whole weights"
