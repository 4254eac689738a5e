"""What the event file holds is what the masks and the weights were at that step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.schedules import ConstantSparsity, SteppedSparsity
from kpipe.unstructured import WeightPruning, find_targets
from kpipe.unstructured.pruning_step import UpdatePruningStep
from kpipe.unstructured.summaries import PruningSummaries
from kpipe.unstructured.wrapping import prune_low_magnitude
from tests.unstructured.nets import Twins

X, Y = np.random.default_rng(0).normal(size=(24, 6)).astype("float32"), np.zeros((24, 2), "float32")
STAGES = SteppedSparsity((0.25, 0.5, 0.75), (0, 3, 6))


def net(wrapped=None):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="second")]
    model = keras.Sequential([keras.Input((6,)), *layers], name="net")
    model = prune_low_magnitude(model, wrapped) if wrapped else model
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def events(folder):
    """Read what was written: tag -> {step: value}."""
    found: dict[str, dict[int, float]] = {}
    (path,) = (folder / "metrics").glob("events*")
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


class Watching(keras.callbacks.Callback):
    """Keep the kernels as they are after every update of the optimizer and after all callbacks' work on it."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def look(self):
        model = self.model
        kernels = {target.path: target.variable.numpy() for target in find_targets(model)[0]}
        self.seen[int(model.optimizer.iterations.numpy())] = kernels

    def on_epoch_begin(self, epoch, logs=None):
        self.look()

    def on_epoch_end(self, epoch, logs=None):
        self.look()


def differences(written, seen):
    """Name the curves that are not what naive NumPy says of the kernels; their zeros are those of the masks."""
    wrong = []
    for path in next(iter(seen.values())):
        for step, kernels in seen.items():
            kernel = kernels[path]
            expected = {"sparsity": np.mean(kernel == 0), "threshold": np.min(np.abs(kernel[kernel != 0]))}
            for name, value in expected.items():
                if written.get(f"{path}/{name}", {}).get(step) != pytest.approx(value, rel=1e-6):
                    wrong.append(f"{path}/{name} at {step}")
    return wrong


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_each_epoch_is_written_with_weight_pruning(tmp_path, first):
    model, told, watching = net(), PruningSummaries(tmp_path), Watching()
    pruning = WeightPruning(STAGES)
    callbacks = [told, pruning, watching] if first else [pruning, told, watching]
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=callbacks)
    written = events(tmp_path)
    assert set(written) == {
        f"{layer}/kernel/{name}" for layer in ("first", "second") for name in ("sparsity", "threshold")
    }
    assert written["first/kernel/sparsity"] == {0: 0.25, 3: 0.5, 6: 0.75, 9: 0.75}
    assert differences(written, watching.seen) == []


def test_the_comparison_finds_another_step_s_threshold(tmp_path):
    model, told, watching = net(), PruningSummaries(tmp_path), Watching()
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[told, WeightPruning(STAGES), watching])
    shifted = {step: watching.seen[{0: 0, 3: 6, 6: 6, 9: 9}[step]] for step in watching.seen}
    assert differences(events(tmp_path), shifted) == [
        f"{layer}/kernel/{name} at 3" for layer in ("first", "second") for name in ("sparsity", "threshold")
    ]


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_each_epoch_is_written_with_wrapped_layers(tmp_path, first):
    model, told, watching = net(wrapped=ConstantSparsity(0.5, 2, frequency=3)), PruningSummaries(tmp_path), Watching()
    updating = UpdatePruningStep()
    callbacks = [told, updating, watching] if first else [updating, told, watching]
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=callbacks)
    written = events(tmp_path)
    assert len(written) == 4 and all(tag.endswith(("kernel/sparsity", "kernel/threshold")) for tag in written)
    assert all(found == {0: 0.0, 3: 0.5, 6: 0.5, 9: 0.5} for tag, found in written.items() if "sparsity" in tag)
    assert differences(written, watching.seen) == []


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "callback"])
def test_so_many_batches_are_written_between(tmp_path, wrapped, first):
    """Wrapped layers count from 1 and are pruned where a step begins: at step 4 of them, three updates are done."""
    schedule = ConstantSparsity(0.5, 4 if wrapped else 3, frequency=50)
    model, told = net(wrapped=schedule if wrapped else None), PruningSummaries(tmp_path, update_freq=2)
    pruning = UpdatePruningStep() if wrapped else WeightPruning(schedule)
    callbacks = [told, pruning] if first else [pruning, told]
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
    found = next(found for tag, found in events(tmp_path).items() if tag.endswith("first/kernel/sparsity"))
    assert found == {0: 0.0, 2: 0.0, 4: 0.5, 6: 0.5, 8: 0.5, 10: 0.5, 12: 0.5}


def test_a_training_that_is_stopped_early_is_written_to_its_end(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model = net()
    callbacks = [WeightPruning(ConstantSparsity(0.5, 5)), PruningSummaries(str(tmp_path)), Stop()]
    model.fit(X, Y, batch_size=8, epochs=5, verbose=0, callbacks=callbacks)
    assert events(tmp_path)["first/kernel/sparsity"] == {0: 0.0, 3: 0.0, 6: 0.5}


def test_the_curves_have_the_names_of_the_report(tmp_path):
    """Also where Keras's paths are the same for two weights, in a nested model, and for a weight frozen meanwhile."""
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="first")], name="inner")
    model = keras.Sequential([keras.Input((6,)), inner, Twins(2, name="twins"), keras.layers.Dense(2, name="second")])
    model.compile("sgd", "mse")

    class Freeze(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model.get_layer("second").trainable = False

    pruning = WeightPruning(ConstantSparsity(0.5, 0))
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[pruning, Freeze(), PruningSummaries(tmp_path)])
    assert len({weight.path for weight in model.weights}) < len(model.weights)
    names = {row.path for row in pruning.report().pruned}
    assert names == {"inner/first/kernel", "twins/kernel", "twins/kernel#2", "second/kernel"}
    assert set(events(tmp_path)) == {f"{name}/{curve}" for name in names for curve in ("sparsity", "threshold")}


def test_a_model_without_masks_has_an_empty_file(tmp_path):
    net().fit(X, Y, verbose=0, callbacks=[PruningSummaries(tmp_path)])
    assert events(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("",), "log_dir is ''; expected the folder"),
        ((None,), "log_dir is None"),
        (("logs", "never"), "update_freq is 'never'; expected 'epoch', 'batch' or a number"),
        (("logs", 0), "update_freq is 0"),
        (("logs", True), "update_freq is True"),
    ],
)
def test_wrong_arguments_are_refused(arguments, match):
    with pytest.raises(KpipeError, match=match):
        PruningSummaries(*arguments)
