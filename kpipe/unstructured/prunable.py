"""Whether a layer, built or not, has something to prune; if not, why."""

from dataclasses import dataclass

import keras

from kpipe.layers import Weight, known, layers_within, roles_of, unlisted, weight_facts_of, weights_within
from kpipe.targets import PACKED, PRUNED_ROLES


@dataclass(frozen=True)
class Prunability:
    """Say whether a layer has kernels to prune.

    Args:
        prunable: It has, or will have when it is built.
        reason: Why not, where a user would ask; "" for a layer that has no kernels by its nature.
        unknown: kpipe does not know what the weights of the layer do.
    """

    prunable: bool
    reason: str = ""
    unknown: bool = False


def prunability(layer: keras.Layer) -> Prunability:
    """Judge a layer with all that is inside it.

    Example:
        >>> prunability(keras.layers.Dense(2)).prunable, prunability(keras.layers.Flatten()).prunable
        (True, False)
        >>> frozen = keras.layers.Dense(2, trainable=False)
        >>> frozen.build((None, 3))
        >>> prunability(frozen).reason
        'it is frozen: trainable is False'
    """
    kernels = kernels_of(layer) if layer.built else []
    if any(weight.variable.trainable for weight in kernels) or (not kernels and _will_have_kernels(layer)):
        return Prunability(True)
    if kernels:
        return Prunability(False, "it is frozen: trainable is False")
    if (reason := _stored_otherwise(layer)) or _is_known(layer):
        return Prunability(False, reason)
    kind = type(layer).__name__
    return Prunability(
        False,
        f"kpipe knows no kernel of {kind}; say which it has with kpipe.layers.register_weights({kind}, roles={{...: "
        f"'kernel'}}), or list its variables in a method get_prunable_weights() of {kind}",
        unknown=True,
    )


def kernels_of(layer: keras.Layer) -> list[Weight]:
    """List the kernels inside a built layer; where a layer has `get_prunable_weights()`, those that it lists.

    Example:
        >>> layer = keras.layers.LSTM(2)
        >>> layer.build((None, 4, 3))
        >>> [weight.role for weight in kernels_of(layer)]
        ['kernel', 'recurrent_kernel']
    """
    left_out = unlisted(layer)
    return [
        weight
        for weight in weights_within(layer)
        if weight.role in PRUNED_ROLES
        and id(weight.variable) not in left_out
        and keras.backend.is_float_dtype(weight.variable.dtype)
    ]


def _will_have_kernels(layer: keras.Layer) -> bool:
    """Say whether something inside gets kernels when it is built."""
    return any(_promises_kernels(inside) for inside in layers_within(layer) if not inside.built)


def _promises_kernels(layer: keras.Layer) -> bool:
    facts = weight_facts_of(layer)
    makes_its_own = facts.whole and not layer._layers  # attention makes its projections when it is built
    lists = callable(getattr(layer, "get_prunable_weights", None))
    return lists or makes_its_own or any(role in PRUNED_ROLES for role in roles_of(layer).values())


def _stored_otherwise(layer: keras.Layer) -> str:
    """Say what stands in place of a kernel: low-rank adapters, or integers."""
    for inside in layers_within(layer):
        if getattr(inside, "lora_enabled", False):
            return "LoRA is enabled: prune before enable_lora()"
        if inside.quantization_mode in PACKED:
            return f"it is quantized to {inside.quantization_mode}: prune before quantize()"
    return ""


def _is_known(layer: keras.Layer) -> bool:
    """Say whether kpipe knows what every weight that trains does, or will do."""
    if not layer.built:
        return any(known(inside) for inside in layers_within(layer))
    roles = {id(weight.variable) for weight in weights_within(layer)}
    return all(id(variable) in roles for variable in layer.trainable_variables)
