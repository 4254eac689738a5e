"""The classes by which TFMOT's wrappers are saved."""

from typing import Any


def wrappers() -> dict[str, Any]:
    """Map names in a file to TFMOT's classes."""
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.clustering.keras import cluster_wrapper
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        cluster_preserve_quantize_registry,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
        prune_preserve_quantize_registry,
    )

    scopes = (
        tfmot.sparsity.keras.prune_scope(),
        tfmot.clustering.keras.cluster_scope(),
        tfmot.quantization.keras.quantize_scope(),
    )
    found: dict[str, Any] = {}
    for objects in [one for scope in scopes for one in scope.custom_objects]:
        found.update(objects)
    for module in (cluster_wrapper, prune_preserve_quantize_registry, cluster_preserve_quantize_registry):
        found.update({name: value for name, value in vars(module).items() if isinstance(value, type)})
    return found
