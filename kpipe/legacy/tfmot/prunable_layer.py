"""TFMOT's protocol for layers of one's own."""

from abc import ABC, abstractmethod

import keras


class PrunableLayer(ABC):
    """Derive a layer from it that says itself which of its weights are pruned; having the method is enough too.

    Example:
        >>> class Gate(keras.layers.Dense, PrunableLayer):
        ...     "Prune the bias too."
        ...     def get_prunable_weights(self):
        ...         return [self.kernel, self.bias]
        >>> from kpipe.unstructured.wrapping import prune_low_magnitude
        >>> gate = prune_low_magnitude(Gate(2))
        >>> gate.build((None, 3))
        >>> [weight.name for weight, _, _ in gate.pruning_vars]
        ['kernel', 'bias']
    """

    @abstractmethod
    def get_prunable_weights(self) -> list[keras.Variable]:
        """List the variables to prune, once the layer is built."""
