"""Take TFMOT's wrappers off a model, with TFMOT where it can."""

from typing import Any

import numpy as np

from .graph import flat
from .refusal import Refusal

PRUNED = {"PruneLowMagnitude"}
CLUSTERED = {"ClusterWeights", "ClusterWeightsMHA", "ClusterWeightsRNN"}
QUANTIZED = {"QuantizeWrapper", "QuantizeWrapperV2", "QuantizeAnnotate"}
EQUAL = 1e-5
"""How far TFMOT may move outputs up to 1 when it takes wrappers off."""
ROUNDED = {"QuantizeLayer"}


def strip(model: Any, inputs: Any) -> tuple[Any, list[str]]:
    """Take the wrappers off.

    Masks and codebooks are applied to the weights; rounding is taken out.

    Args:
        model: A model of tf_keras that has been called: a pruned layer applies its mask to its weights then.
        inputs: Inputs that the model takes.

    Returns:
        The plain model, and what the user is to know when its outputs are not those of the model as it was saved.
    """
    kinds = {type(layer).__name__ for layer in model._flatten_layers()}
    if kinds & (CLUSTERED | PRUNED):
        import tensorflow_model_optimization as tfmot

        if kinds & CLUSTERED:
            model = tfmot.clustering.keras.strip_clustering(model)
        if kinds & PRUNED:
            model = tfmot.sparsity.keras.strip_pruning(model)
    if not kinds & (QUANTIZED | ROUNDED):
        return model, []
    rounded = model(inputs, training=False)
    plain = unquantized(model)
    moved = _moved(rounded, plain(inputs, training=False))
    if moved == 0:
        return plain, []
    note = (
        "the fake quantization is taken out and its ranges are dropped: on random inputs this moves the outputs by up "
        f"to {moved:.2g}; quantize the model anew to get ranges"
    )
    return plain, [note]


def _moved(rounded: Any, plain: Any) -> float:
    """Give the largest difference of two models' outputs; NaN where one of them is."""
    pairs = zip(flat(rounded), flat(plain), strict=True)
    return float(np.max([np.abs(np.asarray(a, float) - np.asarray(b, float)).max(initial=0.0) for a, b in pairs]))


def check_stripped(wrapped: Any, plain: Any) -> None:
    """Hold a model from which TFMOT has taken the wrappers against the model as it was saved.

    Args:
        wrapped: What the model gave as it was saved.
        plain: What it gives without the wrappers, on the same inputs.

    Raises:
        Refusal: When they differ.
    """
    if wrapped is plain:
        return
    scale = max(1.0, *(float(np.max(np.abs(np.asarray(one, float)), initial=0.0)) for one in flat(wrapped)))
    moved = _moved(wrapped, plain)
    if not moved <= EQUAL * scale:
        raise Refusal(
            f"to take TFMOT's wrappers off moves the outputs by {moved:.2g}. The wrappers pass no mask on, of an "
            "embedding with mask_zero or of Masking; the layers in them do. If masks are to hold, strip the model with "
            "TFMOT and save that"
        )


def unquantized(model: Any) -> Any:
    """Take the quantize wrappers and the rounding layers off; the layers that TFMOT made of others stay.

    Args:
        model: A model of tf_keras with quantize wrappers.

    Returns:
        A new model; its `QuantizeLayer`s are identities that are to be left out (`graph.is_rounding`).
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras

    pairs = []

    def plain(layer: Any) -> Any:
        if type(layer).__name__ in ROUNDED:
            made = tf_keras.layers.Activation("linear", name=layer.name)
            made._was_rounding = True
            return made
        inner = layer.layer if type(layer).__name__ in QUANTIZED else layer
        made = type(inner).from_config(_unquantized_config(inner))
        pairs.append((layer, made))
        return made

    _recluster(model)
    with tfmot.quantization.keras.quantize_scope():
        stripped = tf_keras.models.clone_model(model, clone_function=plain)
    for layer, made in pairs:
        _take_weights(layer, made)
    return stripped


def _unquantized_config(layer: Any) -> dict[str, Any]:
    config = dict(layer.get_config())
    activation = config.get("activation")
    while isinstance(activation, dict) and activation.get("class_name") == "QuantizeAwareActivation":
        activation = activation["config"]["activation"]
    if isinstance(activation, dict) and activation.get("class_name") == "NoOpActivation":
        activation = "linear"
    return {**config, "activation": activation} if "activation" in config else config


def _recluster(model: Any) -> None:
    """Write the codebooks of layers that were quantized with their clusters kept into their weights."""
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import cluster_utils

    if any("ClusterPreserve" in type(getattr(layer, "quantize_config", None)).__name__ for layer in model.layers):
        cluster_utils.strip_clustering_cqat(model)


def _take_weights(layer: Any, made: Any) -> None:
    """Set the weights of a plain layer from those of the same last name in its wrapper."""
    given: dict[str, list[Any]] = {}
    for weight in {id(weight): weight for weight in layer.weights}.values():
        given.setdefault(leaf(weight), []).append(weight)
    values = []
    for weight in made.weights:
        fitting = [one for one in given.get(leaf(weight), []) if one.shape == weight.shape]
        if len(fitting) != 1:
            names = [one.name for one in layer.weights]
            raise Refusal(f"layer {layer.name!r}: {leaf(weight)!r} of {made.name!r} is not found once among {names}")
        values.append(fitting[0].numpy())
    made.set_weights(values)


def leaf(weight: Any) -> str:
    """Give the last part of a weight's name.

    Example:
        >>> class Weight:
        ...     name = "dense/kernel:0"
        >>> leaf(Weight)
        'kernel'
    """
    return weight.name.split(":")[0].rsplit("/", 1)[-1]
