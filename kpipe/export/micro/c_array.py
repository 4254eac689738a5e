"""A LiteRT file as a C++ array that is compiled into the program of a microcontroller, for TFLite Micro."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kpipe.errors import ExportError
from kpipe.export.micro.arena import Arena, arena
from kpipe.export.micro.operators import operators_of, read, resolver_call
from kpipe.export.signature import sanitised

BYTES_PER_LINE = 16
ARRAY = re.compile(r"_model\[\] = \{([^}]*)\};")


@dataclass(frozen=True)
class CArray:
    """Hold the two texts of an array, and what a program needs to know to run it.

    Args:
        name: What all its names in C++ begin with.
        source: The text of the `.cc` file: the array, constant and aligned to 16 bytes.
        header: The text of the `.h` file: its declaration, the operators, the size of the arena.
        operators: The operators to give to the resolver, such as "FULLY_CONNECTED".
        arena: The estimate of the memory that it takes.
    """

    name: str
    source: str
    header: str
    operators: tuple[str, ...]
    arena: Arena


def c_array(content: bytes, name: str) -> CArray:
    """Write a LiteRT file as a C++ array with its header.

    Args:
        content: The file.
        name: The name of both texts without suffix; names in C++ are made from it.

    Returns:
        The array.

    Raises:
        ExportError: When TFLite Micro lacks an operator of the file; each is named.
    """
    model = read(content)
    operators, estimate = tuple(operators_of(model)), arena(model)
    identifier = sanitised([name])[0]
    return CArray(
        name=identifier,
        source=_source(content, name, identifier),
        header=_header(len(content), identifier, operators, estimate),
        operators=operators,
        arena=estimate,
    )


def _source(content: bytes, name: str, identifier: str) -> str:
    lines = [
        "    " + " ".join(f"0x{byte:02x}," for byte in content[start : start + BYTES_PER_LINE])
        for start in range(0, len(content), BYTES_PER_LINE)
    ]
    return "\n".join(
        [
            f"// The content of a LiteRT file, {len(content)} bytes, written by kpipe.",
            f'#include "{name}.h"',
            "",
            f"alignas(16) const unsigned char {identifier}_model[] = {{",
            *lines,
            "};",
            f"const unsigned int {identifier}_model_bytes = {len(content)};",
            "",
        ]
    )


HEADER = """\
// A model for TFLite Micro, written by kpipe.
//
//   tflite::MicroMutableOpResolver<{upper}_OPERATORS> resolver;
//   {name}_add_operators(resolver);
//   alignas(16) static unsigned char arena[{upper}_ARENA_BYTES];
//   tflite::MicroInterpreter interpreter(tflite::GetModel({name}_model), resolver, arena, sizeof(arena));
#ifndef KPIPE_{upper}_MODEL_H_
#define KPIPE_{upper}_MODEL_H_

// How many operators the resolver is given.
#define {upper}_OPERATORS {count}

// An estimate: {activations} for the tensors that live at the same time ({planning} for the planner that lays them out
// there before), {persistent} for what the interpreter keeps. Scratch buffers of kernels made for one processor are not
// counted: ask interpreter.arena_used_bytes() once, on the device, and lay out so much and a little more.
#define {upper}_ARENA_BYTES {total}

extern const unsigned char {name}_model[];
extern const unsigned int {name}_model_bytes;  // {size}

// Give a resolver the operators of the model; true when it took all of them.
template <typename Resolver>
inline bool {name}_add_operators(Resolver& resolver) {{
  return {calls};
}}

#endif  // KPIPE_{upper}_MODEL_H_
"""


def _header(size: int, identifier: str, operators: Sequence[str], estimate: Arena) -> str:
    calls = " && ".join(f"resolver.{resolver_call(operator)}() == 0" for operator in operators) or "true"
    wrapped = textwrap.wrap(calls, 100, break_long_words=False, break_on_hyphens=False)
    return HEADER.format(
        name=identifier,
        upper=identifier.upper(),
        count=max(1, len(operators)),
        calls="\n         ".join(wrapped),
        activations=estimate.activations,
        persistent=estimate.persistent,
        planning=estimate.planning,
        total=estimate.total,
        size=size,
    )


def array_content(source: str) -> bytes:
    """Read the bytes of an array back out of the text of its `.cc` file.

    Example:
        >>> array_content("alignas(16) const unsigned char net_model[] = { 0x1c, 0x00, };")
        b'\\x1c\\x00'
    """
    found = ARRAY.search(source)
    if found is None:
        raise ExportError("The text holds no array that kpipe wrote: expected one whose name ends with _model.")
    return bytes(int(number, 16) for number in re.findall(r"0x[0-9a-f]{2}", found[1]))


def array_paths(path: Path) -> tuple[Path, Path]:
    """Give the places of the array and its header beside a LiteRT file.

    Example:
        >>> [place.name for place in array_paths(Path("exported/digits.tflite"))]
        ['digits.cc', 'digits.h']
    """
    return path.with_suffix(".cc"), path.with_suffix(".h")
