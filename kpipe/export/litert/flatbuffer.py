"""LiteRT files read into objects and written again, and which graphs their operations refer to."""

from collections.abc import Iterator
from typing import Any

REFERENCES = ("subgraph", "branchSubgraphIndices", "calledComputations")
"""Fields of options that hold numbers of graphs, beside all whose names end with `SubgraphIndex`."""


def read(content: bytes) -> Any:
    """Read a file's content into the objects of its schema."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def write(model: Any) -> bytes:
    """Write objects of the schema as a file's content."""
    from ai_edge_litert.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def references(operator: Any) -> Iterator[tuple[Any, str, list[int]]]:
    """Give the fields of an operation's options that refer to graphs, as those of loops, branches and calls do.

    Yields:
        The options, the name of the field, and the numbers in it.
    """
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for name, value in [] if options is None else list(vars(options).items()):
            if value is not None and (name.lower().endswith("subgraphindex") or name in REFERENCES):
                yield options, name, [value] if isinstance(value, int) else [int(number) for number in value]


def reachable(model: Any, start: int) -> list[Any]:
    """Give a graph of a file and all that it refers to, in the order in which they stand."""
    found, waiting = {start}, [start]
    while waiting:
        for operator in model.subgraphs[waiting.pop()].operators or ():
            numbers = {number for _, _, each in references(operator) for number in each if number >= 0}
            waiting += numbers - found
            found |= numbers
    return [model.subgraphs[number] for number in sorted(found)]
