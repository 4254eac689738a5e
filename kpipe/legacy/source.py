"""Look at an old file before it is loaded: what kind it is, who wrote it, what it names."""

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py

from kpipe.errors import KpipeError
from kpipe.loading import check_archive, first_lines

Kind = Literal["h5", "keras", "saved_model"]
TFMOT = frozenset(
    {
        "ClusterWeights",
        "ClusterWeightsMHA",
        "ClusterWeightsRNN",
        "PruneLowMagnitude",
        "QuantizeAnnotate",
        "QuantizeLayer",
        "QuantizeWrapper",
        "QuantizeWrapperV2",
    }
)
"""The classes by which TFMOT's wrappers are saved."""

_CLASS = re.compile(r'"class_name":\s*"([^"]+)"')


@dataclass(frozen=True)
class OldFile:
    """What a look at a file tells.

    Attributes:
        path: Where it is.
        kind: How it is built.
        version: The version of Keras that wrote it, "" where the file does not say.
        config: The text that says what the model is made of.
    """

    path: Path
    kind: Kind
    version: str
    config: str = field(repr=False)

    @property
    def is_keras_3(self) -> bool:
        """Tell whether Keras 3 or later wrote the file."""
        return self.version.partition(".")[0].isdigit() and int(self.version.partition(".")[0]) >= 3

    @property
    def is_wrapped(self) -> bool:
        """Tell whether TFMOT's wrappers are in it."""
        return any(name.rpartition(">")[2] in TFMOT for name in _CLASS.findall(self.config))

    def names(self, name: str) -> bool:
        """Tell whether a class or a function is called for by a name."""
        return json.dumps(name) in self.config


def look_at(path: str | Path) -> OldFile:
    """Tell what a file is, by what is in it and not by its name.

    Args:
        path: A file, or the folder of a SavedModel.

    Raises:
        KpipeError: When there is nothing, or nothing that Keras saved as a model.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _saved_model(path)
    if not path.is_file():
        raise KpipeError(f"There is no file or folder {path} (looked in {path.resolve().parent}).")
    try:
        if h5py.is_hdf5(path):
            return _h5(path)
        if zipfile.is_zipfile(path):
            return _keras(path)
    except KpipeError:
        raise
    except Exception as error:  # h5py, zipfile and the decoders each raise their own
        raise KpipeError(f"{path} is damaged: {first_lines(error)}. Fetch it again.") from error
    raise KpipeError(
        f"{path} is no Keras model: expected an HDF5 file (.h5, .hdf5), a .keras file or the folder of a SavedModel."
    )


def _h5(path: Path) -> OldFile:
    with h5py.File(path, "r") as file:
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    if config is None:
        raise KpipeError(
            f"{path} holds no model config: it is a file of weights alone, or not one of Keras. Build the model in "
            "Keras and call model.load_weights(path)."
        )
    return OldFile(path, "h5", str(_text(version)), str(_text(config)))


def _keras(path: Path) -> OldFile:
    with zipfile.ZipFile(path) as archive:
        if not {"config.json", "metadata.json"} <= set(archive.namelist()):
            raise KpipeError(f"{path} is a zip archive without a Keras config; expected a .keras file.")
        version = json.loads(archive.read("metadata.json")).get("keras_version", "")
    return OldFile(path, "keras", version, check_archive(path))


def _saved_model(path: Path) -> OldFile:
    graph, metadata = path / "saved_model.pb", path / "keras_metadata.pb"
    if not graph.is_file():
        raise KpipeError(f"{path} is a folder without saved_model.pb; expected the folder of a SavedModel.")
    stored = metadata if metadata.is_file() else graph  # before TensorFlow 2.5 the metadata lay in the graph's file
    text = stored.read_bytes().decode("utf-8", errors="ignore")
    if "_tf_keras_" not in text:
        raise KpipeError(
            f"{path} is a SavedModel without Keras metadata (from model.export, tf.saved_model.save or an estimator): "
            "it holds a graph of operations and no layers, so that no Keras model can be made of it. To run it, use "
            "keras.layers.TFSMLayer(path, call_endpoint='serving_default'). To convert it, build its layers in Keras "
            "and set their weights from tf.saved_model.load(path).variables, or save it anew with model.save."
        )
    return OldFile(path, "saved_model", "", text)


def _text(value: object) -> object:
    return value.decode("utf-8") if isinstance(value, bytes) else value
