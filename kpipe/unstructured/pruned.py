"""One weight under pruning: its mask, and what changes with it."""

from dataclasses import dataclass

import numpy as np

from kpipe.projections import Holder, Mask
from kpipe.unstructured.masks import first_mask
from kpipe.unstructured.targets import Target


@dataclass
class Pruned:
    """Keep what is known of one weight.

    Args:
        target: The weight.
        schedule: The name of its schedule.
        mask: What is held; one byte an entry, and nothing else of that size is kept.
        dropped: Number of entries that the mask drops.
    """

    target: Target
    schedule: str | None
    mask: Mask
    dropped: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.target.variable.shape))

    def change(self, keep: np.ndarray, holder: Holder) -> np.ndarray:
        """Change the mask, and the weight at once.

        Args:
            keep: The new keep-mask.
            holder: Holds the mask.

        Returns:
            What has grown: kept now and not before; it is zero at this moment.
        """
        before, self.dropped = self.mask.numpy(), keep.size - int(np.count_nonzero(keep))
        if not np.array_equal(before, keep):
            self.mask.assign(keep)
            holder.project([self.target.variable])
        return keep & ~before


def hold(target: Target, schedule: str | None, holder: Holder) -> Pruned:
    """Hold the zeros that a weight has.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> _ = net.layers[0].kernel.assign([[0.0], [3.0]])
        >>> with Holder(net) as holder:
        ...     one = hold(Target("d/kernel", "kernel", net.layers[0].kernel), None, holder)
        ...     print(one.dropped, one.change(np.array([[False], [False]]), holder).any(), one.dropped)
        1 False 2
        >>> net.layers[0].kernel.numpy().tolist()
        [[0.0], [0.0]]
    """
    keep = first_mask(target.variable.numpy())
    return Pruned(target, schedule, holder.mask(target.variable, keep), keep.size - int(np.count_nonzero(keep)))
