"""What export, verify, benchmark and inspect give: plain frozen values."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Source = Literal["data", "random"]
"""Where the samples of a comparison came from: "data", the caller's own, or "random"."""


@dataclass(frozen=True)
class Agreement:
    """How well a file's outputs agree with the Keras model's, on the same samples.

    Args:
        max_relative_error: Greatest difference of an output over that output's greatest value, max|a - b| / max|b|.
        within_two_steps: Fraction of values at most two steps off: of the output's grid or, where these are fewer, of
            the grid before the softmax, sigmoid or tanh that makes it; None where either computes in float.
        max_steps: Greatest difference in such steps; None where either computes in float.
        argmax_agreement: Fraction of the rows whose greatest entry is at the same place, over the outputs with at least
            two entries; where the model's greatest entries are equal, any of them counts. None without such an output.
        samples: How many samples were compared.
        source: "data" when they are the caller's, "random" when they were drawn.
        signal_to_noise_db: Of a file in whole numbers held against a float model: how far the mean square of the error
            lies below the variance over the samples, 10 · log10(var b / mean (a - b)²) in decibels, least over the
            outputs and the entries of their last axis. None for all other files.

    Example:
        >>> print(Agreement(0.004, 1.0, 1.0, 0.995, 200, "data"))
        200 samples (data): 100.0 % within 2 steps, at most 1.0 steps off, argmax agrees on 99.5 %
        >>> print(Agreement(2e-7, None, None, None, 8, "random"))
        8 samples (random): relative error at most 2.0e-07
        >>> print(Agreement(0.03, None, None, 0.995, 200, "data", 35.2))
        200 samples (data): noise 35.2 dB below the float model's outputs, argmax agrees on 99.5 %
    """

    max_relative_error: float
    within_two_steps: float | None
    max_steps: float | None
    argmax_agreement: float | None
    samples: int
    source: Source
    signal_to_noise_db: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        if self.signal_to_noise_db is not None:
            parts = [f"noise {self.signal_to_noise_db:.1f} dB below the float model's outputs"]
        elif self.max_steps is None or self.within_two_steps is None:
            parts = [f"relative error at most {self.max_relative_error:.1e}"]
        else:
            parts = [f"{self.within_two_steps:.1%} within 2 steps".replace("%", " %")]
            parts.append(f"at most {self.max_steps:.1f} steps off")
        if self.argmax_agreement is not None:
            parts.append(f"argmax agrees on {100 * self.argmax_agreement:.1f} %")
        return f"{self.samples} samples ({self.source}): " + ", ".join(parts)


@dataclass(frozen=True)
class File:
    """A file for a runtime.

    Args:
        path: Where it lies.
        format: "tflite" or "onnx".
        precision: "float32", or that of the scheme or converter by which it was rounded, such as "int8" or "int16x8".
        bytes: Its size.
        gzip_bytes: Its size when compressed with gzip at level 9, which is where zeros and clusters pay.
        agreement: How it agreed with the Keras model when it was written; None for a file from elsewhere.
        zstd_bytes: Its size when compressed with Zstandard at level 19; None where that was not measured.
        metadata: What it says of itself, as `read_metadata` reads it.
        beside: What was written beside it.
    """

    path: Path
    format: str
    precision: str
    bytes: int
    gzip_bytes: int
    agreement: Agreement | None = None
    zstd_bytes: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    beside: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain data, paths as text."""
        return {**asdict(self), "path": str(self.path), "beside": [str(path) for path in self.beside]}


@dataclass(frozen=True)
class Port:
    """An input or output of a file; `scale` and `zero_point` say how its whole numbers stand for values.

    Args:
        name: Its name in the file's signature.
        shape: With the batch axis; None where it is open.
        dtype: NumPy's name of what goes in or comes out of the file itself.
        scale: Step of its grid in units of the value; None when it is not rounded.
        zero_point: The whole number that stands for 0.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True)
class Operation:
    """Operations of one kind in a file: name, types of what goes in and comes out, and how many there are."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    count: int = 1

    def __str__(self) -> str:
        return f"{self.count:4d} × {self.name}({', '.join(self.inputs)} -> {', '.join(self.outputs)})"


ISLAND = "island_"
"""What the name of an operation begins with that was written for a layer in float, and does not bear its name."""


def named_after(scope: str, layer: str) -> bool:
    """Say whether a converter's name for an operation or tensor tells of a layer; calls of a layer are numbered.

    Example:
        >>> named_after("net/norm_1/add", "norm"), named_after("net/normal/add", "norm")
        (True, False)
    """
    return any(re.fullmatch(rf"{re.escape(layer)}(_\d+)?", name) for name in re.split("[/;:]", scope))


@dataclass(frozen=True)
class FloatOperation:
    """An operation that computes in float in a file where whole numbers flow.

    Args:
        scope: Where it comes from, as the converter named it: names of layers between slashes.
        what: What it is and what about it is float.
    """

    scope: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} ({self.scope})"

    def belongs_to(self, islands: Iterable[str], rounded: Collection[str] | None = None) -> bool:
        """Say whether it was written for an island.

        Args:
            islands: Names of layers that compute in float.
            rounded: Names of all others, where operations that are no layers compute in float too: what bears none of
                these names is one of them. None where none does.
        """
        if self.scope.startswith(ISLAND) or any(named_after(self.scope, layer) for layer in islands):
            return True
        return rounded is not None and not any(named_after(self.scope, layer) for layer in rounded)


@dataclass(frozen=True)
class Inspection:
    """What is inside a file.

    Args:
        operations: Its operations, like ones counted together, most frequent first.
        precision: That of the scheme or converter which rounds as it does, or "float32".
        faults: Why no runtime without an extension computes it.
        floats: Where whole numbers flow between its operations, what computes in float.
        stored: The type and the number of entries of each constant with several axes.
    """

    operations: tuple[Operation, ...]
    precision: str
    faults: tuple[str, ...] = ()
    floats: tuple[FloatOperation, ...] = ()
    stored: tuple[tuple[str, int], ...] = ()

    @property
    def hybrids(self) -> int:
        """How many operations take floats and whole weights, and so round what comes in as they run."""
        kinds = ((one.inputs[:1], set(one.inputs[1:]), one.count) for one in self.operations)
        return sum(count for first, rest, count in kinds if first == ("float32",) and rest & {"int8", "int4"})

    def __str__(self) -> str:
        return "\n".join([f"precision: {self.precision}", *map(str, self.operations)])

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        return asdict(self)
