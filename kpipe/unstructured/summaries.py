"""Sparsity and threshold of every mask, for TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.layers import unique
from kpipe.projections import Mask, held_on, trained_model
from kpipe.targets import candidates
from kpipe.unstructured.masked import KeepMasked

SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class="DATA_CLASS_SCALAR"
)
"""What tells TensorBoard that a number is one point of a curve."""

Scalars = dict[str, float]


class PruningSummaries(keras.callbacks.Callback):
    """Write for every mask, as a model trains, how sparse it is and from which magnitude on weights are kept.

    For a weight that `WeightPruning.report()` names P these are the curves `P/sparsity`, the fraction of entries that
    its mask drops, and `P/threshold`, the smallest magnitude among those that it keeps, over the optimizer's updates
    (`optimizer.iterations`). It sees the masks of `WeightPruning` and those of `prune_low_magnitude`, wherever among
    the callbacks it stands. `tensorboard --logdir LOG_DIR` shows the curves; only that needs TensorBoard installed.

    Args:
        log_dir: The folder; the event file is written into `metrics` in it.
        update_freq: "epoch" to write where an epoch begins and at the end, "batch" or a number to write after so many
            batches, too.

    Raises:
        KpipeError: For arguments that do not fit.

    Example:
        >>> import tempfile
        >>> from kpipe.schedules import ConstantSparsity
        >>> from kpipe.unstructured import WeightPruning
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> net.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tell = [PruningSummaries(folder), WeightPruning(ConstantSparsity(0.5, 0))]
        ...     _ = net.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=tell)
        ...     [path.parent.name for path in Path(folder).rglob("events*")]
        ['metrics']
    """

    def __init__(self, log_dir: str | Path, update_freq: str | int = "epoch"):
        super().__init__()
        if not isinstance(log_dir, str | Path) or not str(log_dir):
            raise KpipeError(f"log_dir is {log_dir!r}; expected the folder to write to, such as 'logs'.")
        self.log_dir, self.update_freq = Path(log_dir), update_freq
        self._every = _batches_between(update_freq)
        self._writer: Any = None
        self._batches = 0
        self._latest: tuple[int, Scalars] | None = None  # at the last end of an epoch: what a last one leaves
        self._wrapped: Scalars = {}  # of masks that change where a batch begins, looked at before it does

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin a new event file."""
        self._writer, self._batches, self._latest = None, 0, None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write: all that other callbacks do at the end of an epoch is done."""
        self._write(self._step(), self._scalars())
        self._writer.flush()
        self._batches = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Write what the batches before left, where there were enough of them."""
        if self._is_turn():
            self._write(self._step(), self._scalars() | self._wrapped)
            self._batches = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count, and look at the masks of wrapped layers: `UpdatePruningStep` changes them where a batch begins."""
        self._batches += self._fit.steps_per_execution
        if self._is_turn():
            self._wrapped = self._scalars(wrapped_only=True)

    def _is_turn(self) -> bool:
        return self._every is not None and self._batches >= self._every

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the masks: when the training ends now, they may be gone before this callback hears of it."""
        self._latest = self._step(), self._scalars()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Write a last time and close the file."""
        now = self._scalars()
        if now:
            self._write(self._step(), now)
        elif self._latest is not None:
            self._write(*self._latest)
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    @property
    def _fit(self) -> keras.Model:
        if self.model is None:
            raise KpipeError("PruningSummaries has no model yet: pass it to model.fit, or call set_model(model).")
        return self.model

    def _step(self) -> int:
        return int(self._fit.optimizer.iterations.numpy())

    def _scalars(self, wrapped_only: bool = False) -> Scalars:
        found = {}
        for path, weight, keep in masks_of(trained_model(self._fit)):
            if wrapped_only and not isinstance(held_on(weight)[0], KeepMasked):
                continue
            kept = np.abs(weight.numpy())[keep]
            found[f"{path}/sparsity"] = 1.0 - kept.size / keep.size
            found[f"{path}/threshold"] = float(kept.min()) if kept.size else 0.0
        return found

    def _write(self, step: int, scalars: Scalars) -> None:
        if self._writer is None:  # in a loop of one's own nobody may have said that a training begins
            self._writer = tf.summary.create_file_writer(str(self.log_dir / "metrics"))
        with self._writer.as_default():
            for tag, value in scalars.items():
                tf.summary.write(tag, tf.constant(value, tf.float32), step=step, metadata=SCALAR)


def _batches_between(update_freq: Any) -> int | None:
    """Give after how many batches to write, None for epochs alone."""
    if isinstance(update_freq, int) and not isinstance(update_freq, bool) and update_freq > 0:
        return update_freq
    if update_freq not in ("epoch", "batch"):
        raise KpipeError(f"update_freq is {update_freq!r}; expected 'epoch', 'batch' or a number of batches.")
    return 1 if update_freq == "batch" else None


def masks_of(model: keras.Model) -> Iterator[tuple[str, keras.Variable, np.ndarray]]:
    """Give every weight of a model that a mask is held on now: its path as in reports, itself, and what is kept.

    Example:
        >>> from kpipe.projections import Holder
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")], name="net")
        >>> with Holder(net) as holder:
        ...     _ = holder.mask(net.layers[0].kernel, np.array([[True], [False]]))
        ...     [(path, keep.tolist()) for path, _, keep in masks_of(net)]
        [('d/kernel', [[True], [False]])]
    """
    names = {id(variable): path for path, _, variable, _ in candidates(model)}
    for weight in {id(variable): variable for variable in model.weights}.values():
        own, held = held_on(weight)
        keeps = [projection.numpy() for projection in held if isinstance(projection, Mask)]
        while isinstance(own, KeepMasked):
            keeps.append(own.mask.numpy())
            own = own.before
        if keeps:
            path = names.setdefault(id(weight), unique(weight.path, names.values()))  # no kernel: Keras's own path
            yield path, weight, np.logical_and.reduce(keeps)
