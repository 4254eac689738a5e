"""TFMOT's pruning on Keras 3: a script moves over by one import.

    # import tensorflow_model_optimization as tfmot
    from kpipe.legacy import tfmot

Then `tfmot.sparsity.keras.prune_low_magnitude(...)` and all other public names of `tfmot.sparsity.keras` are there, on
Keras 3. For short, `tfmot.prune_low_magnitude(...)` is the same.

From TensorFlow 2.16 on TFMOT runs on tf_keras, which is Keras 2: such a script sets `TF_USE_LEGACY_KERAS=1`, or imports
`tf_keras as keras`. That has to go too. Keras 3 is `import keras`, and `tf.keras` where the variable is not set; models
and layers of tf_keras are refused. Saved models of Keras 2, with TFMOT's wrappers or without, are brought over by
`kpipe.legacy.load(path)`.

What differs from TFMOT 0.8.1, on purpose:

- Zeros are exact after every update of the optimizer, and in every checkpoint; TFMOT applies its masks in the next
  forward pass and at the end of an epoch. A call of the model, in `predict` or `evaluate`, changes no weight; TFMOT's
  multiplies weights by masks.
- What is dropped stays dropped, and zeros that a weight begins with are kept. In TFMOT entries may come back at every
  update, and a weight that was sparser than asked for loses zeros.
- Counts are exact: among equal magnitudes the lowest index goes first. TFMOT keeps all that equal the threshold.
- A schedule is asked at its `end_step` whatever its frequency, so that its last sparsity is reached; one that begins
  and ends at the same step asks for its final sparsity there, TFMOT for NaN.
- A training in which no update falls, or which ends before its schedule does, ends with a warning.
- `sparsity_m_by_n` is saved, holds for kernels of every rank, and waits for the first update of the schedule; TFMOT
  loses it when a model is loaded, takes kernels of rank 2 and 4 and prunes at step 1.
- Blocks hold for kernels of every rank, along the inputs and outputs at each position of a convolution's window. At an
  edge where a block is cut, the score of that very block counts; TFMOT pads on both sides and scores another window.
- Of a model only layers that have something to prune are wrapped. A layer whose weights kpipe does not know is left
  alone and named in a warning; TFMOT refuses the model. Frozen layers are left alone too. Subclasses of Keras layers,
  `Bidirectional`, `TimeDistributed`, `EinsumDense`, transposed and other layers that TFMOT refuses are pruned.
- `prune_low_magnitude(model)` copies: the given model and its weights stay as they are, where TFMOT trains the very
  same layers. So layers need a `get_config`; functions and classes need not be registered. A layer that is given by
  itself or in a list is held as it is, as in TFMOT; Keras 3 lets nobody put it in another's place in a subclassed model
  that is built.
- `strip_pruning` copies as well and applies the masks; the wrapped model can be trained on. Wrappers inside another
  layer, as in `TimeDistributed(prune_low_magnitude(...))`, come out too; TFMOT leaves them there.
- A policy holds for lists and single layers too; TFMOT asks it for models alone. `block_size` together with
  `sparsity_m_by_n`, and keyword arguments that only a single layer takes, are refused; TFMOT passes over them.
- `UpdatePruningStep` counts the steps, in `on_train_batch_begin`, and every layer once a step however often it is
  called; TFMOT's layers count their calls. A loop of one's own has to call that method before every training step.
- Masks are boolean, one byte an entry, and `threshold` is the smallest magnitude that was kept, in blocks too.
- Wrapped models are registered with Keras: `keras.models.load_model` needs no `prune_scope()`. SavedModel and
  TensorFlow checkpoints are not formats of Keras 3; `.keras` and `.weights.h5` are.
- `PruningSummaries` writes the curves of the masks; it is no `TensorBoard` callback and takes none of its arguments.
- Schedules answer with constant tensors, so they are asked outside of a `tf.function`.
- Of a layer that kpipe knows in part, such as an RNN with one unknown cell, the known part is pruned and the rest is
  named in a warning; TFMOT refuses it.
- Weights of a plain model cannot be loaded into a wrapped one: Keras 3 refuses the file, where TFMOT's TensorFlow
  checkpoints are loaded in part. Load them before wrapping.
- Subclassed models are refused, as in TFMOT; errors are `KpipeError`, a `ValueError`, and say it in other words.

Example:
    >>> import keras
    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> schedule = sparsity.keras.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=4)
    >>> net = sparsity.keras.prune_low_magnitude(net, pruning_schedule=schedule)
    >>> net.compile("sgd", "mse")
    >>> data = keras.ops.ones((16, 4)), keras.ops.ones((16, 2))
    >>> _ = net.fit(*data, batch_size=4, verbose=0, callbacks=[sparsity.keras.UpdatePruningStep()])
    >>> net = sparsity.keras.strip_pruning(net)
    >>> int((net.layers[0].kernel.numpy() == 0).sum())
    4
"""

from typing import NoReturn

from kpipe.legacy.tfmot import sparsity
from kpipe.legacy.tfmot.sparsity.keras import (
    ConstantSparsity,
    PolynomialDecay,
    PrunableLayer,
    PruneForLatencyOnXNNPack,
    PruningPolicy,
    PruningSchedule,
    PruningSummaries,
    UpdatePruningStep,
    prune_low_magnitude,
    prune_scope,
    strip_pruning,
)

__all__ = [
    "ConstantSparsity",
    "PolynomialDecay",
    "PrunableLayer",
    "PruneForLatencyOnXNNPack",
    "PruningPolicy",
    "PruningSchedule",
    "PruningSummaries",
    "UpdatePruningStep",
    "prune_low_magnitude",
    "prune_scope",
    "sparsity",
    "strip_pruning",
]

_ELSEWHERE = {"quantization": "kpipe.quantize", "clustering": "kpipe.legacy.load for models that are clustered"}


def __getattr__(name: str) -> NoReturn:
    if name in _ELSEWHERE:
        raise AttributeError(f"kpipe.legacy.tfmot has TFMOT's pruning alone; for {name} see {_ELSEWHERE[name]}.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
