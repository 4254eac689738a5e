"""Runtimes that run a file, behind one face."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kpipe.errors import ExportError
from kpipe.export.file import Port


class Runtime(ABC):
    """A file loaded in its runtime. Values go in and come out as floats; whole numbers stay inside.

    Args:
        path: The file.
        threads: How many threads the runtime may use.

    Raises:
        ExportError: When the runtime cannot load the file.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def __init__(self, path: Path, threads: int = 1):
        self.path, self.threads = path, threads

    @abstractmethod
    def invocation(self, inputs: Sequence[np.ndarray]) -> Callable[[], object]:
        """Set the inputs, one batch as large as the file takes; give the function that runs the file on them."""

    @abstractmethod
    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run samples, one array (samples, ...) an input; give one array (samples, ...) an output."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_samples(self) -> None:
        """Close the file and raise an `ExportError` unless every input has an axis of samples."""
        odd = [port.name for port in self.inputs if not port.shape or port.dtype == "string"]
        if odd or not self.inputs:
            self.close()
            what = f"its input {odd[0]!r} is a single number, or a text" if odd else "it takes no input"
            raise ExportError(f"{self.path} cannot be run on samples: {what}.")

    def check(self, inputs: Sequence[np.ndarray]) -> None:
        """Raise an `ExportError` unless there is one array an input, of its shape."""
        if len(inputs) != len(self.inputs):
            raise ExportError(f"{self.path} takes {len(self.inputs)} inputs; received {len(inputs)}.")
        for port, array in zip(self.inputs, inputs, strict=True):
            if tuple(array.shape[1:]) != tuple(port.shape[1:]):
                expected = (None, *port.shape[1:])
                raise ExportError(f"{self.path}: input {port.name!r} has the shape {array.shape}; expected {expected}.")


def batches_of(arrays: Sequence[np.ndarray], size: int) -> Iterator[tuple[list[np.ndarray], int]]:
    """Cut arrays into batches of one size; the last is filled up with its own rows, over again.

    Yields:
        The batch of each array, and how many of its rows count.

    Example:
        >>> [(batch[0].tolist(), rows) for batch, rows in batches_of([np.arange(3)], 2)]
        [([0, 1], 2), ([2, 2], 1)]
    """
    for start in range(0, len(arrays[0]), size):
        batch = [array[start : start + size] for array in arrays]
        yield [filled(array, size) for array in batch], len(batch[0])


def filled(array: np.ndarray, size: int) -> np.ndarray:
    """Give an array of `size` rows: the first of the given ones, over again where there are fewer."""
    return array[np.arange(size) % len(array)]


def to_port(values: np.ndarray, port: Port) -> np.ndarray:
    """Turn floats into what a port takes: round(x / scale) + zero_point, clipped, when it takes whole numbers.

    Example:
        >>> to_port(np.array([0.0, 0.5, 99.0]), Port("x", (1, 3), "int8", 0.25, -3))
        array([ -3,  -1, 127], dtype=int8)
    """
    dtype = np.dtype(port.dtype)
    if dtype.kind in "iu" and port.scale:
        ends = np.iinfo(dtype)
        values = np.clip(np.floor(values / np.float32(port.scale) + 0.5) + port.zero_point, ends.min, ends.max)
    return np.ascontiguousarray(values, dtype)


def from_port(values: np.ndarray, port: Port) -> np.ndarray:
    """Turn what comes out of a port into floats: (q - zero_point) · scale.

    Example:
        >>> from_port(np.array([-1], np.int8), Port("y", (1,), "int8", 0.25, -3))
        array([0.5], dtype=float32)
    """
    if np.dtype(port.dtype).kind in "iu" and port.scale:
        return ((values.astype(np.int32) - port.zero_point) * port.scale).astype(np.float32)
    return np.array(values)
