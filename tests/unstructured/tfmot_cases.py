"""Weights and schedules for which TFMOT's masks are compared with kpipe's, step by step; no optimizer changes them."""

from dataclasses import dataclass

import numpy as np

STEPS = 24


@dataclass(frozen=True)
class Case:
    """Say what is pruned, in TFMOT's words and as a pattern of kpipe."""

    shape: tuple[int, ...]
    schedule: str
    pattern: str = "unstructured"
    block: tuple[int, int] = (1, 1)
    pooling: str = "AVG"
    zeros_of: tuple[int, int] | None = None
    equal: bool = False

    def weight(self) -> np.ndarray:
        """Draw the kernel."""
        if self.equal:
            return np.ones(self.shape, "float32")
        return np.random.default_rng(len(self.shape)).normal(size=self.shape).astype("float32")


SCHEDULES = {
    "constant": ("ConstantSparsity", {"target_sparsity": 0.6, "begin_step": 2, "end_step": 17, "frequency": 5}),
    "polynomial": (
        "PolynomialDecay",
        {"initial_sparsity": 0.1, "final_sparsity": 0.8, "begin_step": 3, "end_step": 23, "power": 3, "frequency": 4},
    ),
    "even": (
        "PolynomialDecay",
        {"initial_sparsity": 0.0, "final_sparsity": 0.7, "begin_step": 1, "end_step": 22, "power": 1, "frequency": 3},
    ),
    "at once": ("ConstantSparsity", {"target_sparsity": 0.5, "begin_step": 1, "end_step": 1, "frequency": 1}),
    "at once, 3/4": ("ConstantSparsity", {"target_sparsity": 0.75, "begin_step": 1, "end_step": 1, "frequency": 1}),
}
"""Name -> class and arguments, the same in both libraries."""

DENSE, CONV = (16, 9), (3, 3, 8, 5)
SAME = {
    **{f"dense, {name}": Case(DENSE, name) for name in ("constant", "polynomial", "even")},
    **{f"convolution, {name}": Case(CONV, name) for name in ("constant", "polynomial", "even")},
    **{
        f"{rows}x{columns} {pooling}, {name}": Case(
            shape, name, f"block:{rows}x{columns}:{pooling.lower()}", (rows, columns), pooling
        )
        for rows, columns, shape in ((2, 2, (16, 10)), (4, 1, (20, 6)))
        for pooling in ("AVG", "MAX")
        for name in ("constant", "polynomial")
    },
    "2x2 AVG, ragged": Case((15, 9), "polynomial", "block:2x2", (2, 2)),
    "4x1 MAX, ragged": Case((19, 6), "polynomial", "block:4x1:max", (4, 1), "MAX"),
    "2:4 dense": Case(DENSE, "at once", "2:4", zeros_of=(2, 4)),
    "2:4 dense, ragged": Case((15, 9), "at once", "2:4", zeros_of=(2, 4)),
    "2:4 convolution": Case(CONV, "at once", "2:4", zeros_of=(2, 4)),
    "1:4 dense": Case(DENSE, "at once, 3/4", "1:4", zeros_of=(3, 4)),
    "1:4 convolution": Case(CONV, "at once, 3/4", "1:4", zeros_of=(3, 4)),
}
"""Where both must agree."""

APART = {
    "equal weights": Case(DENSE, "constant", equal=True),
    "an odd number of entries, half of them": Case((5, 3), "at once"),
    "blocks that do not fill the weight": Case((14, 7), "constant", "block:4x1", (4, 1)),
}
"""Where kpipe does otherwise on purpose."""
