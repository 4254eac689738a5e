"""Wrap the layers of a model for pruning, and strip the wrappers again."""

import warnings
from typing import Any

import keras

from kpipe.copies import copy_layer, pairs, refuse_keras2
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.layers import own_variables
from kpipe.projections import masked
from kpipe.schedules import ConstantSparsity
from kpipe.unstructured.arguments import PruningSchedule
from kpipe.unstructured.prunable import prunability
from kpipe.unstructured.rebuild import is_graph, rebuild
from kpipe.unstructured.wrapper import PruneLowMagnitude


def prune_low_magnitude(
    to_prune: keras.Model | keras.Layer | list,
    pruning_schedule: PruningSchedule = ConstantSparsity(0.5, 0),  # noqa: B008 - frozen, and TFMOT's signature
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: str = "AVG",
    pruning_policy: Any = None,
    sparsity_m_by_n: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Any:
    """Wrap what has something to prune, so that it is pruned while it trains; `strip_pruning` takes it out again.

    TFMOT's function on Keras 3. Give `callbacks=[UpdatePruningStep()]` to `fit`. The masks are part of the model: it is
    saved and loaded as any other, and goes on where it was. What is dropped is exactly zero from then on.

    Of a model a new one is made: the given one, and its weights, stay as they are. A single layer, or those of a list,
    are wrapped themselves: the wrapper holds the very object. Layers without kernels, and those that are wrapped
    already, are left alone; so is one whose weights kpipe does not know or that is frozen, and a warning names it.

    Args:
        to_prune: A Sequential or Functional model, nested models too; a layer; or a list of layers.
        pruning_schedule: When to update the masks, and to which sparsity. Training steps are counted from 1.
        block_size: Inputs and outputs of the blocks that are dropped whole, in dense layers or at each position of a
            convolution's window; (1, 1) for single entries.
        block_pooling_type: The score of a block: "AVG", the mean magnitude of its entries, or "MAX".
        pruning_policy: Object with `allow_pruning(layer)`, which layers to wrap, and
            `ensure_model_supports_pruning(model)`, which raises for a model that it does not go with.
        sparsity_m_by_n: (m, n), such as (2, 4): m zeros in each n consecutive entries along the inputs. The schedule
            says when, its sparsity does not matter: at the first update the masks are made whole.
        **kwargs: Of the wrapper's Keras layer, such as `input_shape`; for a single layer only.

    Returns:
        A model that is not compiled, a layer, or a list of layers.

    Raises:
        KpipeError: For a subclassed model, an unknown layer that is given by itself, and arguments that do not fit.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d"), keras.layers.ReLU(name="r")])
        >>> [layer.name for layer in prune_low_magnitude(net).layers]
        ['prune_low_magnitude_d', 'r']

    References:
        Zhu and Gupta, To prune, or not to prune (2017), https://arxiv.org/abs/1710.01878
    """
    arguments = {
        "pruning_schedule": pruning_schedule,
        "block_size": block_size,
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": sparsity_m_by_n,
    }
    if kwargs and (isinstance(to_prune, keras.Model) or not isinstance(to_prune, keras.Layer)):
        raise KpipeError(
            f"prune_low_magnitude received {', '.join(kwargs)}, which only a single layer takes. It takes to_prune, "
            f"{', '.join(arguments)} and pruning_policy."
        )
    refuse_keras2(to_prune)
    wrap = _Wrapping(arguments, pruning_policy)
    if isinstance(to_prune, list | tuple):
        pruned = [wrap.layer(layer) for layer in to_prune]
    elif isinstance(to_prune, keras.Model):
        refuse_subclassed("prune_low_magnitude", to_prune, "Or wrap the layers that it holds one by one.")
        if pruning_policy is not None:
            pruning_policy.ensure_model_supports_pruning(to_prune)
        pruned = rebuild(to_prune, wrap.copy)
    elif isinstance(to_prune, keras.Layer):
        pruned = wrap.single(to_prune, kwargs)
    else:
        raise KpipeError(
            f"prune_low_magnitude received {type(to_prune).__name__}; expected a Sequential or Functional Keras 3 "
            "model, a Keras 3 layer, or a list of layers."
        )
    wrap.tell()
    return pruned


class _Wrapping:
    """Wrap layer after layer, and remember what was left alone."""

    def __init__(self, arguments: dict[str, Any], policy: Any):
        self.arguments, self.policy = arguments, policy
        self.wrapped = 0
        self.left_alone: list[str] = []

    def layer(self, layer: keras.Layer, **kwargs: Any) -> keras.Layer:
        """Wrap a layer if there is something to prune in it."""
        return PruneLowMagnitude(layer, **self.arguments, **kwargs) if self._wanted(layer) else layer

    def copy(self, layer: keras.Layer) -> keras.Layer:
        """Wrap a copy of a layer."""
        return PruneLowMagnitude(copy_layer(layer), **self.arguments) if self._wanted(layer) else copy_layer(layer)

    def single(self, layer: keras.Layer, kwargs: dict[str, Any]) -> keras.Layer:
        """Wrap a layer that was given by itself: here an unknown one is refused."""
        if prunability(layer).unknown:
            return PruneLowMagnitude(layer, **self.arguments, **kwargs)
        pruned = self.layer(layer, **kwargs)
        if pruned is layer:  # what is for the wrapper goes to the layer, as Keras keeps it
            given = (kwargs["input_dim"],) if kwargs.get("input_dim") else kwargs.get("input_shape")
            layer._input_shape_arg = given or getattr(layer, "_input_shape_arg", None)
        return pruned

    def _wanted(self, layer: keras.Layer) -> bool:
        refuse_keras2(layer)
        if not isinstance(layer, keras.Layer):
            raise KpipeError(f"The list holds {type(layer).__name__}; expected Keras layers alone.")
        if pruned_layers(layer):
            self.wrapped += 1
            return False
        if self.policy is not None and not self.policy.allow_pruning(layer):
            return False
        verdict = prunability(layer)
        self.wrapped += verdict.prunable
        if verdict.reason:
            self.left_alone.append(f"{layer.name} ({type(layer).__name__}): {verdict.reason}")
        return verdict.prunable

    def tell(self) -> None:
        """Warn of what was left alone for a reason that its user may not expect, and when nothing was wrapped."""
        if not self.wrapped:
            reasons = f" ({'; '.join(self.left_alone)})" if self.left_alone else ""
            text = f"prune_low_magnitude wrapped nothing: no layer has a kernel to prune{reasons}."
            warnings.warn(text, NoEffectWarning, stacklevel=3)
        elif self.left_alone:
            text = f"prune_low_magnitude left layers as they are: {'; '.join(self.left_alone)}."
            warnings.warn(text, UserWarning, stacklevel=3)


def strip_pruning(model: keras.Model) -> keras.Model:
    """Take the wrappers out of a model: a plain model with exact zeros, to be saved, exported or measured.

    Args:
        model: A model made by `prune_low_magnitude`, or with layers wrapped by it, nested models too.

    Returns:
        A new model that is not compiled, with the masks applied to the weights. The given one stays as it is and can be
        trained on.

    Raises:
        KpipeError: When it is no Keras model, or a subclassed one.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> [layer.name for layer in strip_pruning(prune_low_magnitude(net)).layers]
        ['d']
    """
    refuse_keras2(model)
    if not isinstance(model, keras.Model):
        raise KpipeError(f"strip_pruning received {type(model).__name__}; expected a Keras 3 model (keras.Model).")
    refuse_subclassed("strip_pruning", model)
    if not pruned_layers(model):
        text = f"strip_pruning found no wrapper in {model.name!r}: what it gives is a copy."
        warnings.warn(text, NoEffectWarning, stacklevel=2)
    return rebuild(model, _strip)


def _strip(layer: keras.Layer) -> keras.Layer:
    """Copy a layer without the wrappers round it and inside it, and apply their masks."""
    wrappers = pruned_layers(layer)
    if not wrappers:
        return copy_layer(layer)
    plain = copy_layer(layer, without=PruneLowMagnitude)
    twins = {
        id(variable): twin
        for new, old in pairs(plain, layer, without=PruneLowMagnitude)
        for twin, variable in zip(own_variables(new), own_variables(old), strict=True)
    }
    for known in (known for wrapper in wrappers for known in wrapper.masked):
        twin = twins[id(known.weight)]
        twin.assign(masked(twin, known.mask))
    return plain


def pruned_layers(model: keras.Layer) -> list[PruneLowMagnitude]:
    """List the wrappers in a model or layer and all that is inside it, each once.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Flatten()])
        >>> len(pruned_layers(prune_low_magnitude(net)))
        1
    """
    found = [layer for layer in model._flatten_layers() if isinstance(layer, PruneLowMagnitude)]
    return list({id(layer): layer for layer in found}.values())


def refuse_subclassed(what: str, model: keras.Model, or_else: str = "") -> None:
    """Refuse a model whose graph cannot be read."""
    if not is_graph(model):
        raise KpipeError(
            f"{what} received {model.name!r} ({type(model).__name__}), a subclassed model; expected a Sequential or "
            "Functional one. If its call is made of layers, turn it into a graph: x = keras.Input(...); "
            f"keras.Model(x, model.call(x)). {or_else}".rstrip()
        )
