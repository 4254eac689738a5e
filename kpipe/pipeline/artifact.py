"""What passes from one stage to the next: a Keras model, and what kind of model it is."""

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import keras


@dataclass(frozen=True)
class FloatModel:
    """Hold a plain Keras model."""

    model: keras.Model
    kind: ClassVar[str] = "float"


@dataclass(frozen=True)
class QuantizedModel:
    """Hold a Keras model with fake-quant nodes and their ranges."""

    model: keras.Model
    kind: ClassVar[str] = "quantized"


Artifact = FloatModel | QuantizedModel
KINDS: dict[str, type[FloatModel] | type[QuantizedModel]] = {kind.kind: kind for kind in (FloatModel, QuantizedModel)}

AnyModel = TypeVar("AnyModel", FloatModel, QuantizedModel)
"""For a stage that gives on the kind it takes."""
