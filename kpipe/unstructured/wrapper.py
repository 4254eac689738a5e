"""A layer round a layer, which holds masks on its kernels: TFMOT's wrapper on Keras 3."""

from inspect import signature
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L
from keras.src.backend.common.stateless_scope import in_stateless_scope

from kpipe.copies import refuse_keras2
from kpipe.errors import KpipeError
from kpipe.layers import Weight, layers_within, unlisted, weights_within
from kpipe.schedules import ConstantSparsity
from kpipe.unstructured.arguments import PruningSchedule, pattern_for, refuse_schedule
from kpipe.unstructured.masked import KeepMasked, MaskedWeight
from kpipe.unstructured.prunable import kernels_of, prunability

_UNKNOWN = "kpipe does not know what it does; see kpipe.layers.register_weights"


@keras.saving.register_keras_serializable(package="kpipe")
class PruneLowMagnitude(L.Wrapper):
    """Hold a mask on every kernel inside a layer; `UpdatePruningStep` chooses what it drops while a model trains.

    The masks, of one byte an entry, are saved with the model, and so is the number of training steps seen, so that a
    loaded model goes on where it was. What a mask drops is exactly zero after every update of the optimizer, with or
    without a callback: the mask stands on the variable's constraint, after a constraint of one's own. A call changes
    nothing. A training call fails until the callback has begun.

    Args:
        layer: The layer; it is held as it is, not copied.
        pruning_schedule: When to update the masks, and to which sparsity; step 1 is the first training step.
        block_size: Inputs and outputs of the blocks that are dropped whole; (1, 1) for single entries.
        block_pooling_type: The score of a block: "AVG", the mean magnitude of its entries, or "MAX".
        sparsity_m_by_n: (m, n): at least m zeros in each n consecutive entries along the inputs, at the first update.
        **kwargs: Of the Keras layer. Its name is always "prune_low_magnitude_" and that of the layer.

    Raises:
        KpipeError: For arguments that do not fit, and for a layer in which kpipe knows no weights.

    Example:
        >>> layer = PruneLowMagnitude(L.Dense(2, name="logits"), ConstantSparsity(0.5, 0, frequency=1))
        >>> layer.build((None, 4))
        >>> layer.name, [tuple(mask.shape) for _, mask, _ in layer.pruning_vars], int(layer.pruning_step)
        ('prune_low_magnitude_logits', [(4, 2)], -1)
    """

    def __init__(
        self,
        layer: keras.Layer,
        pruning_schedule: PruningSchedule = ConstantSparsity(0.5, 0),  # noqa: B008 - frozen, and TFMOT's signature
        block_size: tuple[int, int] = (1, 1),
        block_pooling_type: str = "AVG",
        sparsity_m_by_n: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        refuse_keras2(layer)
        if not isinstance(layer, keras.Layer):
            raise KpipeError(f"Received {type(layer).__name__}; expected a Keras layer to prune, such as Dense.")
        if any(isinstance(inside, PruneLowMagnitude) for inside in layer._flatten_layers()):
            raise KpipeError(f"Layer {layer.name!r} ({type(layer).__name__}) is wrapped already, or a layer inside it.")
        refuse_schedule(pruning_schedule)
        self.pattern = pattern_for(block_size, block_pooling_type, sparsity_m_by_n)
        if (verdict := prunability(layer)).unknown:
            raise KpipeError(f"Layer {layer.name!r} ({type(layer).__name__}) cannot be pruned: {verdict.reason}.")
        kwargs["name"] = f"prune_low_magnitude_{layer.name}"
        super().__init__(layer, **{"dtype": layer.dtype_policy, "trainable": layer.trainable, **kwargs})
        self.autocast = layer.autocast  # inputs reach the layer as they would without a wrapper
        self.supports_masking = layer.supports_masking
        given = getattr(layer, "_input_shape_arg", None)  # Dense(2, input_shape=(3,)) as the first of a Sequential
        self._input_shape_arg = getattr(self, "_input_shape_arg", None) or given
        self.pruning_schedule = pruning_schedule
        self.block_size, self.block_pooling_type = tuple(block_size), block_pooling_type
        self.sparsity_m_by_n = tuple(sparsity_m_by_n) if sparsity_m_by_n else None
        self.steps = -1  # as the callback counts them
        self.first_call: tuple[Any, Any] | None = None
        self.masked: tuple[MaskedWeight, ...] = ()
        self.left_dense: tuple[tuple[str, str], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let Keras build the layer by what it is called with, of which the wrapper's own build sees but a shape.

        The first argument may go by the name that the layer has for it, such as `query`.
        """
        first_name = next(iter(signature(self.layer.call).parameters), None)
        if not args and first_name in kwargs:
            args = (kwargs.pop(first_name),)
        if not self.built:
            first: Any = keras.tree.map_structure(_spec, (args, kwargs))
            self.first_call = first
            if not self.layer.built:
                self._trace(*first)
        return super().__call__(*args, **kwargs)

    def _trace(self, args: Any, kwargs: Any) -> None:
        keras.Operation.compute_output_spec(self, *args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Build the layer, and make a mask for each of its kernels that can have the pattern."""
        if not all(inside.built for inside in layers_within(self.layer)):
            self._build_layer(input_shape)
        masks, left_dense = [], []
        for weight in kernels_of(self.layer):
            reason = self.pattern.refuses(weight.layout.turned_shape(weight.variable.shape))
            if reason is None:
                masks.append(self._masked(weight, f"_{len(masks)}" if masks else ""))
            else:
                left_dense.append((weight.path, reason))
        settled = {id(weight.variable) for weight in weights_within(self.layer)} | set(unlisted(self.layer))
        left_dense += [(one.path, _UNKNOWN) for one in self.layer.trainable_variables if id(one) not in settled]
        self.masked, self.left_dense = tuple(masks), tuple(left_dense)
        self.pruning_step = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.steps),
            dtype="int64",
            trainable=False,
            name="pruning_step",
        )

    def _build_layer(self, input_shape: Any) -> None:
        try:
            if type(self.layer).build is keras.Layer.build:  # Keras builds what is inside it by a call
                spec = keras.tree.map_shape_structure(
                    lambda one: keras.KerasTensor(one, self.compute_dtype), input_shape
                )
                self._trace((spec,), {})
            else:
                super().build(input_shape)
        except TypeError as error:
            raise KpipeError(
                f"Layer {self.layer.name!r} ({type(self.layer).__name__}) cannot be built from the shape of its first "
                f"input alone: {error}. Call it once before you wrap it."
            ) from error

    def get_build_config(self) -> dict[str, Any] | None:
        """Give what the layer is built by: the shape of its first input, and its first call where it takes one."""
        config: dict[str, Any] | None = super().get_build_config()
        if config and self.first_call and type(self.layer).build is keras.Layer.build:
            config["first_call"] = keras.saving.serialize_keras_object(self.first_call)
        return config

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build the layer and its masks by what `get_build_config` gave."""
        if config and "first_call" in config:
            self._trace(*keras.saving.deserialize_keras_object(config["first_call"]))
        super().build_from_config(config)

    def _masked(self, weight: Weight, suffix: str) -> MaskedWeight:
        variable = weight.variable
        mask = self.add_weight(
            shape=variable.shape, initializer="ones", dtype="bool", trainable=False, name=f"mask{suffix}"
        )
        threshold = self.add_weight(
            shape=(), initializer="zeros", dtype="float32", trainable=False, name=f"threshold{suffix}"
        )
        variable.constraint = KeepMasked(variable.constraint, mask)
        return MaskedWeight(variable, mask, threshold, weight.layout)

    def call(self, inputs: Any, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Call the layer; in training, see to it that the callback has begun."""
        if training:
            self._check_begun()
        return self.layer(inputs, *args, **kwargs)

    def _check_begun(self) -> None:
        """Fail when no training step has begun: in every call, and where a call is traced, for XLA asserts nothing."""
        if in_stateless_scope():  # a call that makes a graph, not a step
            return
        message = (
            f"Layer {self.name!r} is pruned while it trains, and no training step has begun. Give "
            "callbacks=[UpdatePruningStep()] to model.fit; in a loop of your own call its set_model(model) and "
            "on_train_begin() before, and on_train_batch_begin(step) before every training step."
        )
        # The plain kernel: what tf.debugging asserts is a branch of the graph.
        tf.raw_ops.Assert(condition=tf.convert_to_tensor(self.pruning_step) >= 1, data=[message])
        if not tf.executing_eagerly() and self.steps < 1:
            with tf.init_scope():
                begun = int(self.pruning_step.numpy()) >= 1
            if not begun:
                raise tf.errors.InvalidArgumentError(None, None, message)

    @property
    def pruning_vars(self) -> list[tuple[keras.Variable, keras.Variable, keras.Variable]]:
        """List (weight, mask, threshold) of every masked weight."""
        return [(known.weight, known.mask, known.threshold) for known in self.masked]

    def begin(self) -> bool:
        """Make ready for a first training step; False when the layer has been trained before and goes on."""
        if int(self.pruning_step.numpy()) >= 0:
            return False
        self.pruning_step.assign(0)
        for known in self.masked:
            known.keep_zeros()
        return True

    def drop(self, sparsity: float) -> bool:
        """Bring every mask to a sparsity, and set to zero what it drops; False when some weight is frozen and stays."""
        trained = [known for known in self.masked if known.weight.trainable]
        for known in trained:
            known.drop(self.pattern, sparsity)
        return len(trained) == len(self.masked)

    def project(self) -> None:
        """Set to zero what the masks drop."""
        for known in self.masked:
            known.project()

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Give the mask of time steps that the layer gives."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Give the shape that the layer gives."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Trace the layer's call: its outputs may be several, and of other types than the first input."""
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_weights(self) -> list[np.ndarray]:
        """Give the weights of the layer, without the masks."""
        return self.layer.get_weights()

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Set the weights of the layer; the masks stay, and are applied."""
        self.layer.set_weights(weights)
        self.project()

    def get_config(self) -> dict[str, Any]:
        """Give all the arguments."""
        return {
            **super().get_config(),
            "pruning_schedule": keras.saving.serialize_keras_object(self.pruning_schedule),
            "block_size": self.block_size,
            "block_pooling_type": self.block_pooling_type,
            "sparsity_m_by_n": self.sparsity_m_by_n,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "PruneLowMagnitude":
        """Make the wrapper, its layer and its schedule from what `get_config` gave."""
        config = dict(config)
        for name in ("layer", "pruning_schedule"):
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)


def _spec(value: Any) -> Any:
    """Give the shape and type of an array or a tensor; anything else as it is."""
    if not isinstance(value, np.ndarray | keras.KerasTensor) and not keras.ops.is_tensor(value):
        return value
    return keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype))
