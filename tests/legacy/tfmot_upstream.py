"""Run TFMOT's own tests of pruning against `kpipe.legacy.tfmot`; a program, run by `test_tfmot_upstream.py`.

    python tests/legacy/tfmot_upstream.py CHECKOUT [--broken] [FILE...]

CHECKOUT is a folder with `tensorflow_model_optimization/python/core/...`. Nothing of it is imported but its tests and
the modules that hold their helpers: every other import of TFMOT is answered with names of kpipe. What Keras 2 had and
the tests use is lent to Keras 3 in this process. Prints JSON: file -> {"passed", "skipped", "failed"}; with --broken,
of masks that are never brought to a sparsity.

Three of the files test TFMOT's insides. `tfmot_insides.py` lends them those parts of kpipe that do the same work:

- prune_registry_test: TFMOT keeps a table of classes, and gives a layer a method that lists what is pruned in it. kpipe
  has no such table to ask, so the cases ask which layers it knows, and what its wrapper masks in them.
- pruning_impl_test: TFMOT's class that computes masks. kpipe's are held by the wrapper, so each weight of a case is the
  weight of a wrapped layer.
- pruning_utils_test: pure functions. The scores and the masks of blocks and of m by n are those of kpipe's patterns.
  `weights_rearrange` and `m_by_n_sparsity_mask_prepare` have no like: they turn a kernel to the order of axes that
  TFLite stores and a mask back, and kpipe takes groups along the axis that a kernel sums over, wherever it lies.
  `is_pruned_m_by_n` is no part of kpipe either: it is what judges its masks in prune_integration_test, and is tested.

The skips are those of the tests at commit b0eea48 of tensorflow/model-optimization.
"""

import importlib.abc
import importlib.util
import json
import sys
import tempfile
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import flags
from keras.src.models.functional import Functional

from kpipe.legacy import tfmot
from kpipe.unstructured.pruning_step import ask
from kpipe.unstructured.wrapper import PruneLowMagnitude
from kpipe.unstructured.wrapping import pruned_layers
from tests.legacy import tfmot_insides

TFMOT = "tensorflow_model_optimization"
CORE = f"{TFMOT}.python.core"
PRUNING = f"{CORE}.sparsity.keras"
EXECUTED = (f"{CORE}.keras.test_utils", f"{PRUNING}.test_utils", f"{PRUNING}.tools.sparsity_tooling")
"""Modules of TFMOT that hold helpers of its tests, or are built on its public names alone: these are executed."""

NOT_WRAPPED = "kpipe leaves layers without kernels unwrapped, and takes those that TFMOT refuses"
COPIED = "kpipe copies the layers of a model, so that pruning does not change the given one"
NO_CONFIG = "kpipe copies the layers of a model; this one has no get_config, and Keras 3 cannot make it anew"
TAKEN = "TFMOT refuses the layer or the model that holds it; kpipe knows its kernel, or leaves it alone with a warning"
RANKS = "patterns of kpipe hold for kernels of every rank"
TFLITE = "kpipe knows no order of axes but that of the kernel: it does not store kernels as TFLite does"
A_CLASS = "TFMOT takes the class of a layer for a layer here, by mistake"
IN_PART = "of a layer that kpipe knows in part it prunes that part; TFMOT refuses it"
EDGE = "at an edge where a block is cut kpipe scores that block; TFMOT pads on both sides and scores another window"
FORMATS = "weights of a plain model cannot be loaded into a wrapped one by halves: Keras 3 refuses a file that differs"

SKIPPED: dict[str, dict[str, str]] = {
    "pruning_schedule_test": {},
    "prune_test": {
        "PruneTest.testPruneKerasNonPrunableLayer": NOT_WRAPPED,
        "PruneTest.testPruneModelValidLayersSuccessful": NOT_WRAPPED,
        "PruneTest.testPruneValidLayersListSuccessful": NOT_WRAPPED,
        "PruneTest.testPruneModelDoesNotWrapAlreadyWrappedLayer": COPIED,
        "PruneTest.testPruneKerasUnsupportedLayer": TAKEN,
        "PruneTest.testPruneCustomNonPrunableLayer": TAKEN,
        "PruneTest.testPruneModelUnsupportedKerasLayerRaisesError": TAKEN,
        "PruneTest.testPruneModelCustomNonPrunableLayerRaisesError": TAKEN,
        "PruneTest.testPruneFunctionalModel ": NOT_WRAPPED,
        "PruneTest.testPruneScope_NeededForKerasModel": "wrapped models of kpipe are loaded without a scope",
    },
    "pruning_wrapper_test": {
        "PruningWrapperTest.testConv3DWeightNotPrunedWithSparsityMbyN": "Keras 3 refuses inputs of rank 6 to Conv3D",
    },
    "pruning_callbacks_test": {},
    "prune_integration_test": {
        "PruneIntegrationTest.testPrunePretrainedModel_PreservesWeightObjects": COPIED,
        "PruneIntegrationTest.testPruneThenLoadTFWeights_DoesNotPreserveWeights": FORMATS,
        "PruneIntegrationTest.testPruneThenLoadTFWeights_DifferentInferenceWithoutTraining": FORMATS,
        "PruneIntegrationTest.testPruneCheckpoints_CheckpointsNotSparse": "checkpoints of kpipe are sparse",
        "PruneIntegrationTest.testSparsityPruningMbyN_SupportedSubclassLayers": NO_CONFIG,
    },
    "pruning_policy_test": {},
    "prune_distributed_test": {},
    "tools/sparsity_tooling_test": {},
    "prune_registry_test": {
        "PruneRegistryTest.testSupportsLayer4 ": A_CLASS,
        "PruneRegistryTest.testSupportsLayer13 ": A_CLASS,
        "PruneRegistryTest.testDoesNotSupportLayer0 ": TAKEN,
        "PruneRegistryTest.testDoesNotSupportLayer3 ": TAKEN,
        "PruneRegistryTest.testMakePrunableRaisesErrorForKerasUnsupportedLayer": TAKEN,
        "PruneRegistryTest.testMakePrunableRaisesErrorForCustomLayerInheritedFromPrunableLayer": TAKEN,
        "PruneRegistryTest.testMakePrunableRaisesErrorOnRNNLayersUnsupportedCell": IN_PART,
    },
    "pruning_impl_test": {
        "PruningTest.testBlockMaskingWithHigherDimensionsRaisesError": RANKS,
        "PruningTest.testSparsityMbyNMaskingSimpleRaises_3d": RANKS,
    },
    "pruning_utils_test": {
        "PruningUtilsParameterizedTest.testFactorizedAvgPool6x6": EDGE,
        "PruningUtilsParameterizedTest.testFactorizedMaxPool6x6": EDGE,
        "WeightsRearrangeTest.testWeights": TFLITE,
        "MbyNSparsityMaskPrepareTest.testMbyN": TFLITE,
    },
}
"""File of TFMOT's tests -> what a case's name begins with -> why it is not run."""

TEXTS = {
    "INVALID_TO_PRUNE_PARAM_ERROR": "{input}",
    "INVALID_TO_PRUNE_START_LAYER_ERROR": "stem Conv2D ZeroPadding2D",
    "INVALID_TO_PRUNE_STOP_LAYER_ERROR": "GlobalAveragePooling2D",
    "INVALID_TO_PRUNE_MIDDLE_LAYER_ERROR": "{} PruneForLatencyOnXNNPack",
    "INVALID_TO_PRUNE_UNBUILT_ERROR": "unbuilt",
}
"""Text that a case compares an error with -> words of it: kpipe's errors are in its own words."""


class Words(str):
    """Equal every text that holds all the words."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and all(word in other for word in self.split())

    def __hash__(self) -> int:
        return super().__hash__()

    def format(self, *args: Any, **kwargs: Any) -> "Words":
        """Fill in the names."""
        return Words(super().format(*args, **kwargs))


class Answers(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answer imports of TFMOT: with kpipe's names, with a module of the checkout, or with an empty package."""

    def __init__(self, checkout: Path, given: dict[str, dict[str, Any]]):
        self.checkout, self.given = checkout, given

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.split(".")[0] != TFMOT:
            return None
        if fullname in EXECUTED:
            return importlib.util.spec_from_file_location(fullname, self.file(fullname))
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname not in self.given)

    def file(self, module: str) -> Path:
        """Give where a module of the checkout stands."""
        return self.checkout.joinpath(*module.split(".")).with_suffix(".py")

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module).update(self.given.get(module.__name__, {}))


def gauge(_: str) -> Callable[[Callable], Callable]:
    """Decorate with TFMOT's counter of uses: not at all."""
    return lambda function: function


def given() -> dict[str, dict[str, Any]]:
    """Map TFMOT's modules to the names that stand for theirs."""
    public = tfmot.sparsity.keras
    names = {name: getattr(public, name) for name in public.__all__}
    compat = {"keras": tf.keras, "is_v1_apis": lambda: False, "initialize_variables": lambda case: None}
    return {
        f"{CORE}.keras.compat": compat,
        f"{CORE}.keras.metrics": {"MonitorBoolGauge": gauge},
        **{f"{PRUNING}.{module}": inside for module, inside in tfmot_insides.MODULES.items()},
        f"{PRUNING}.pruning_wrapper": {
            "PruneLowMagnitude": PruneLowMagnitude,
            "collect_prunable_layers": pruned_layers,
        },
        **{
            f"{PRUNING}.{module}": names
            for module in ("prune", "prunable_layer", "pruning_callbacks", "pruning_policy", "pruning_schedule")
        },
    }


def lend() -> None:
    """Lend to Keras 3 and to the wrapper what the tests use of Keras 2 and of TFMOT's insides."""
    build = PruneLowMagnitude.build

    def building(self: PruneLowMagnitude, input_shape: Any = None) -> None:
        build(self, input_shape)
        if not callable(getattr(self.layer, "get_prunable_weights", None)):
            object.__setattr__(self.layer, "get_prunable_weights", lambda: [weight for weight, *_ in self.pruning_vars])

    def insides(self: PruneLowMagnitude) -> Any:
        def update() -> None:
            due, sparsity = ask(self.pruning_schedule, int(self.pruning_step))
            if due:
                self.drop(sparsity)

        return types.SimpleNamespace(conditional_mask_update=update, weight_mask_op=self.project)

    PruneLowMagnitude.build = building
    PruneLowMagnitude.pruning_obj = property(insides)
    lend_models()
    lend_layers()
    tf.keras.models.model_from_config = keras.saving.deserialize_keras_object
    tf.keras.experimental = types.SimpleNamespace(PeepholeLSTMCell=keras.layers.LSTMCell)  # gone from Keras 3
    identity = tf.identity
    tf.identity = lambda x: keras.layers.Identity()(x) if isinstance(x, keras.KerasTensor) else identity(x)


def lend_models() -> None:
    """Lend attributes and habits of Keras 2's models."""
    model, tensor = keras.Model, keras.KerasTensor
    model.optimizer = None  # until it is compiled
    model.submodules = property(lambda self: self._flatten_layers(include_self=False))
    for name in ("input", "output"):  # not a list of one
        whole = property(lambda self, whole=f"{name}s": only(getattr(self, whole)))
        setattr(model, name, whole)
        setattr(Functional, name, whole)
    tensor.get_shape = lambda self: tf.TensorShape(self.shape)
    for name in ("save_weights", "load_weights"):  # one format and one suffix in Keras 3
        setattr(model, name, suffixed(getattr(model, name)))
    models = tf.keras.models
    save, load = models.save_model, models.load_model  # of an .h5 Keras 3 cannot train on: it loses the optimizer
    models.save_model = lambda model, path: save(model, f"{path}.keras")
    models.load_model = lambda path: load(f"{path}.keras")
    model.save = lambda self, path: save(self, f"{path}.keras")
    build, describe = keras.Sequential.build, keras.Sequential.get_config

    def building(self: keras.Sequential, input_shape: Any = None) -> None:
        if not self._functional:  # a built one passed over another shape
            build(self, input_shape)

    def described(self: keras.Sequential) -> dict[str, Any]:  # how a layer was built is not among its arguments
        config = describe(self)
        for layer in config["layers"]:
            layer.pop("build_config", None)
        return config

    keras.Sequential.build, keras.Sequential.get_config = building, described


def lend_layers() -> None:
    """Lend classes and arguments of Keras 2's layers."""
    layers, add_weight, new_input = tf.keras.layers, keras.layers.Layer.add_weight, keras.Input
    for name in ("LocallyConnected1D", "LocallyConnected2D"):  # named in a table, gone from Keras 3
        setattr(layers, name, type(name, (keras.layers.Layer,), {}))
    layers.AveragePooling2D = lambda pool_size=(2, 2): keras.layers.AveragePooling2D(pool_size)
    layers.Input = lambda shape, **kwargs: new_input(as_shape(shape), **kwargs)
    layers.experimental = types.SimpleNamespace(
        SyncBatchNormalization=lambda: keras.layers.BatchNormalization(synchronized=True),
        preprocessing=types.SimpleNamespace(Rescaling=keras.layers.Rescaling),
    )
    keras.layers.Layer.add_weight = lambda self, shape=None, **kwargs: add_weight(self, as_shape(shape), **kwargs)


def as_shape(shape: Any) -> Any:
    """Take a number for a shape of one axis."""
    return (shape,) if isinstance(shape, int) else shape


def only(tensors: list) -> Any:
    """Give the one tensor of a list, or the list."""
    return tensors[0] if len(tensors) == 1 else tensors


def suffixed(method: Callable) -> Callable:
    """Call a method with the one suffix of weights that Keras 3 takes."""
    return lambda self, path, **kwargs: method(self, f"{path}.weights.h5", **kwargs)


def cases(module: types.ModuleType) -> Iterator[unittest.TestCase]:
    """Give the cases of a module one by one."""
    waiting: list[Any] = [unittest.defaultTestLoader.loadTestsFromModule(module)]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, unittest.TestSuite):
            waiting = [*one, *waiting]
        else:
            yield one


def run(file: str, path: Path) -> dict[str, Any]:
    """Run one file of tests."""
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found: dict[str, Any] = {"passed": [], "skipped": {}, "failed": {}}
    for case in cases(module):
        label = case.id().removeprefix(f"{name}.")
        for text, words in TEXTS.items():
            if getattr(case, text, None) is not None:
                setattr(case, text, Words(words))
        reason = next((why for begin, why in SKIPPED[file].items() if f"{label} ".startswith(begin)), None)
        result = unittest.TestResult()
        if reason is None and not label.endswith("test_session"):
            keras.utils.set_random_seed(0)
            case.run(result)
        if reason is not None:
            found["skipped"][label] = reason
        elif result.errors or result.failures:
            found["failed"][label] = (result.errors + result.failures)[0][1]
        elif result.testsRun and not result.skipped:
            found["passed"].append(label)
    return found


def main(checkout: str, *options: str) -> None:
    """Run all the files that are there; print what came of each."""
    flags.FLAGS(["tests"])
    lend()
    if "--broken" in options:
        PruneLowMagnitude.drop = lambda self, sparsity: True
    chosen = [option for option in options if option in SKIPPED] or SKIPPED
    sys.meta_path.insert(0, Answers(Path(checkout), given()))
    tempfile.tempdir = tempfile.mkdtemp()
    paths = {file: Path(checkout, *PRUNING.split("."), f"{file}.py") for file in chosen}
    print(json.dumps({file: run(file, path) for file, path in paths.items() if path.is_file()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
