"""The callbacks for `model.fit`."""

from kpipe.structured.callback import FilterPruning
from kpipe.unstructured.callback import WeightPruning

__all__ = ["FilterPruning", "WeightPruning"]
