"""Data by name, by file or by function, split for training, validation, test and calibration."""

import importlib
import inspect
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.data.labels import CLOTHES, DIGITS, THINGS, csv_pair, names_on_disk, stored_place
from kpipe.data.sentences import sentences
from kpipe.errors import KpipeError
from kpipe.registry import Registry, nearest

Split = tuple[np.ndarray, np.ndarray]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

SOURCES: Registry[Callable[[int], Arrays]] = Registry("data source")
"""Name -> function of the seed that gives x_train, y_train, x_test, y_test."""

NAMES = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Dataset:
    """Hold the four splits of one data source; the calibration samples come from the training split.

    Args:
        name: What the source is called.
        train: Inputs and labels.
        validation: Likewise.
        test: Likewise.
        calibration: Inputs alone.
        classes: How many classes the labels number; None where they are no classes.
        labels: The names of the classes in the order of their numbers, where the source tells them.
        scale: What the stored numbers were multiplied by to become the inputs; None where they are the inputs.

    Example:
        >>> x, y = np.zeros((4, 2), "float32"), np.array([0, 1, 0, 1])
        >>> Dataset("mine", train=(x, y), validation=(x, y), test=(x, y), calibration=x, classes=2).input_shape
        (2,)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    calibration: np.ndarray
    classes: int | None
    labels: tuple[str, ...] = ()
    scale: float | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Give the shape of one sample."""
        return tuple(self.train[0].shape[1:])


def load(
    source: str, *, validation_fraction: float = 0.1, calibration_samples: int = 256, seed: int = 0, **options: Any
) -> Dataset:
    """Load a data source and split it, the same way for the same seed.

    Images stored as unsigned bytes become float32 in [0, 1], and get a channel axis when they have none. The training
    data is shuffled by the seed; its end is the validation split.

    The names of the classes come from an array `labels` in a .npz file, from the labels of CSV files, or are known.

    Args:
        source: "digits" (scikit-learn's, bundled), "mnist", "fashion_mnist" or "cifar10" (`<name>.npz` in the folder
            named by the environment variable KPIPE_DATA, else Keras's own download), the name of any other `.npz` file
            in that folder, of a pair `<name>_train.csv` and `<name>_test.csv` there with the columns text and
            label (see `kpipe.data.sentences`), the path of a `.npz` file with x_train, y_train, x_test and y_test, or
            "module:function" where the function returns a `Dataset` or those four arrays.
        validation_fraction: Fraction of the training data to hold out, in (0, 1).
        calibration_samples: Number of training samples kept for calibration; fewer when the split is smaller.
        seed: Seed of every shuffle.
        options: Arguments for the function of a "module:function" source, or of `sentences` for a pair of CSV files; no
            other source takes any.

    Returns:
        The data set, with float32 inputs where the source holds floats or images.

    Raises:
        KpipeError: When the source is not found (it says where it looked), or its arrays do not fit together.

    Example:
        >>> digits = load("digits", calibration_samples=64)
        >>> digits.input_shape, digits.classes, len(digits.train[0]), len(digits.calibration)
        ((8, 8, 1), 10, 1294, 64)
    """
    if not 0 < validation_fraction < 1:
        raise KpipeError(f"validation_fraction is {validation_fraction!r}; expected a fraction in (0, 1), such as 0.1.")
    if calibration_samples < 1:
        raise KpipeError(f"calibration_samples is {calibration_samples!r}; expected at least 1.")
    found = _find(source, seed, options)
    if isinstance(found, Dataset):
        return found
    x, y, x_test, y_test = _prepare(source, found)
    facts = SOURCES.facts(source) if source in SOURCES else {}
    classes = int(max(y.max(), y_test.max())) + 1 if y.ndim == 1 and y.dtype.kind in "iu" else None
    labels = names_on_disk(source) or facts.get("labels", ())
    order = np.random.default_rng(seed).permutation(len(x))
    held = max(1, round(validation_fraction * len(x)))
    if held >= len(x):
        raise KpipeError(f"The data source {source!r} has {len(x)} training samples; at least 2 are needed.")
    train, validation = order[:-held], order[-held:]
    return Dataset(
        name=Path(source).stem,
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]),
        test=(x_test, y_test),
        calibration=x[train[:calibration_samples]],
        classes=classes,
        labels=labels if len(labels) == classes else (),
        scale=1 / 255 if found[0].dtype == np.uint8 else facts.get("scale"),
    )


def _find(source: str, seed: int, options: dict[str, Any]) -> Dataset | Arrays:
    if not isinstance(source, str) or not source:
        raise KpipeError(f"The data source is {source!r}; expected a name, a path or 'module:function'.")
    if ":" in source and not Path(source).suffix == ".npz":
        return _call(source, options)
    stored = stored_place(source)
    if pair := csv_pair(stored):
        return _call_with(source, sentences, {"train": pair[0], "test": pair[1], **options})
    if options:
        raise KpipeError(
            f"The data source {source!r} takes no options; received {', '.join(options)}. "
            "Only a 'module:function' source and a pair of CSV files take them."
        )
    if source.endswith(".npz"):
        return _read(Path(source).expanduser())
    if source in SOURCES and SOURCES.facts(source).get("bundled"):
        return SOURCES[source](seed)
    if stored is not None and stored.exists():
        return _read(stored)
    if source in SOURCES:
        return SOURCES[source](seed)
    looked = (
        f"{stored} and {source}_train.csv (not there)" if stored else "no folder of your own, as KPIPE_DATA is not set"
    )
    raise KpipeError(
        f"Data source {source!r} not found. Looked in: {looked}; the built-in names {', '.join(SOURCES)}."
        f"{nearest(source, SOURCES)} A path to a .npz file or 'module:function' works too."
    )


def _read(path: Path) -> Arrays:
    if not path.exists():
        raise KpipeError(f"The data file {path} does not exist (looked in {path.resolve().parent}). Check the path.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in NAMES if name not in stored.files]
            if missing:
                raise KpipeError(
                    f"The data file {path} has no {', '.join(missing)}; "
                    f"it holds {', '.join(stored.files) or 'nothing'}. "
                    f"Save it with numpy.savez({path.name!r}, x_train=..., y_train=..., x_test=..., y_test=...)."
                )
            return stored["x_train"], stored["y_train"], stored["x_test"], stored["y_test"]
    except (OSError, zipfile.BadZipFile) as error:
        raise KpipeError(f"The data file {path} is not a readable .npz file: {error}.") from error
    except KpipeError:
        raise
    except ValueError as error:
        raise KpipeError(f"The data file {path} cannot be read without pickle: {error}. Store plain arrays.") from error


def _call(source: str, options: dict[str, Any]) -> Dataset | Arrays:
    made = _call_with(source, _import(source), options)
    if isinstance(made, Dataset):
        return made
    if isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, tuple) for part in made):
        made = (*made[0], *made[1])
    if not isinstance(made, tuple | list) or len(made) != 4:
        raise KpipeError(f"The data source {source!r} returned {type(made).__name__}; expected a Dataset or 4 arrays.")
    return tuple(np.asarray(part) for part in made)  # type: ignore[return-value]


def _call_with(source: str, function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call a function with the options of a recipe; what does not fit is said."""
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise KpipeError(
            f"The data source {source!r} refused its options {options}: {error}. "
            f"It takes {inspect.signature(function)}."
        ) from error
    except ValueError:  # a builtin without a signature: the call itself tells
        pass
    try:
        return function(**options)
    except KpipeError:
        raise
    except Exception as error:
        raise KpipeError(f"The data source {source!r} failed with {type(error).__name__}: {error}") from error


def _import(source: str) -> Callable[..., Any]:
    module_name, _, function_name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # an import runs the user's code: anything may come out of it
        raise KpipeError(
            f"The data source {source!r} cannot be imported: {type(error).__name__}: {error}. "
            "Expected 'module:function' on Python's path."
        ) from error
    if not callable(function):
        raise KpipeError(f"The data source {source!r} is {type(function).__name__}; expected a function.")
    return function


def _prepare(source: str, arrays: Arrays) -> Arrays:
    x, y, x_test, y_test = arrays
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise KpipeError(
            f"The data source {source!r} has {len(x)} training inputs for {len(y)} labels and {len(x_test)} test "
            f"inputs for {len(y_test)}; expected one label a sample."
        )
    if x.shape[1:] != x_test.shape[1:]:
        raise KpipeError(
            f"The data source {source!r}: training {x.shape[1:]} and test {x_test.shape[1:]} shapes differ."
        )
    if not len(x) or not len(x_test):
        raise KpipeError(f"The data source {source!r} is empty: {len(x)} training and {len(x_test)} test samples.")
    return _inputs(x), _labels(y), _inputs(x_test), _labels(y_test)


def _inputs(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint8:
        x = x.astype("float32") / np.float32(255)
        return x[..., np.newaxis] if x.ndim == 3 else x  # (n, h, w) -> (n, h, w, 1)
    return x.astype("float32") if x.dtype.kind == "f" else x


def _labels(y: np.ndarray) -> np.ndarray:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # (n, 1) -> (n,)
    return y.astype("int64") if y.dtype.kind in "iu" else y


@SOURCES("digits", bundled=True, labels=DIGITS, scale=1 / 16)
def digits(seed: int) -> Arrays:
    """Give scikit-learn's 1,797 digits of 8x8 pixels, a fifth of them for the test.

    Example:
        >>> [array.shape for array in digits(seed=0)]
        [(1438, 8, 8, 1), (1438,), (359, 8, 8, 1), (359,)]
    """
    from sklearn.datasets import load_digits

    stored = load_digits()
    order = np.random.default_rng(seed).permutation(len(stored.target))
    x = (stored.images[order] / 16).astype("float32")[..., np.newaxis]  # (n, 8, 8) -> (n, 8, 8, 1)
    y = stored.target[order]
    held = len(x) // 5
    return x[held:], y[held:], x[:held], y[:held]


def _download(name: str) -> Arrays:
    try:
        (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises bare Exception for a failed download
        folder = os.environ.get("KPIPE_DATA") or "KPIPE_DATA is not set"
        raise KpipeError(
            f"Data source {name!r} not found. Looked for {name}.npz in the folder of KPIPE_DATA ({folder}), then asked "
            f"keras.datasets, which failed: {error}. Put {name}.npz into a folder and set KPIPE_DATA to it."
        ) from error
    return x, y, x_test, y_test


@SOURCES("mnist", labels=DIGITS)
def mnist(seed: int) -> Arrays:
    """Give MNIST: 70,000 handwritten digits of 28x28 pixels."""
    return _download("mnist")


@SOURCES("fashion_mnist", labels=CLOTHES)
def fashion_mnist(seed: int) -> Arrays:
    """Give Fashion-MNIST: 70,000 pieces of clothing of 28x28 pixels."""
    return _download("fashion_mnist")


@SOURCES("cifar10", labels=THINGS)
def cifar10(seed: int) -> Arrays:
    """Give CIFAR-10: 60,000 colour images of 32x32 pixels."""
    return _download("cifar10")
