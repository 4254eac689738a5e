"""Plain text laid out in columns."""

from collections.abc import Collection, Sequence

from kpipe.export.file import Port

LONGEST_NAME = 28
"""Columns of a name in a table."""


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lay out rows in columns as wide as their longest cell, two blanks apart.

    Args:
        rows: The rows, all of the same length.
        right: Which columns stand flush right.

    Example:
        >>> print("\\n".join(aligned([("op", "KB"), ("Conv", "1.5")], right=[1])))
        op     KB
        Conv  1.5
    """
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]


def shortened(scope: str, longest: int = LONGEST_NAME) -> str:
    """Give the end of a converter's name for what an operation computes, which tells most.

    Example:
        >>> shortened("net_1/conv_1/Relu;net_1/conv_1/BiasAdd;net_1/conv_1/convolution")
        'net_1/conv_1/Relu'
        >>> shortened("StatefulPartitionedCall/network_1/block_1/convolution_1/BiasAdd")
        '…/convolution_1/BiasAdd'
    """
    first = scope.split(";")[0]
    while len(first) > longest and "/" in first.removeprefix("…/"):
        first = "…/" + first.removeprefix("…/").partition("/")[2]
    return first if len(first) <= longest else first[: longest - 1] + "…"


def port_line(what: str, port: Port) -> str:
    """Say in one line what goes into a file or comes out.

    Example:
        >>> port_line("input", Port("image", (None, 8, 8, 1), "int8", 0.5, -128))
        'input  image: int8 ?×8×8×1, value = (q + 128) · 0.5'
    """
    shape = "×".join("?" if size is None else str(size) for size in port.shape)
    line = f"{what:6s} {port.name}: {port.dtype} {shape}"
    if port.scale is None:
        return line
    sign = "+" if port.zero_point < 0 else "-"
    return f"{line}, value = (q {sign} {abs(port.zero_point)}) · {port.scale:.6g}"
