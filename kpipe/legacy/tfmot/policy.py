"""TFMOT's pruning policies: which layers to wrap, and which models a policy goes with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import layers as L

from kpipe.copies import refuse_keras2
from kpipe.errors import KpipeError
from kpipe.graph import Flow, Site, sites
from kpipe.unstructured.rebuild import is_graph
from kpipe.unstructured.wrapper import PruneLowMagnitude

ANY = (L.Add, L.Multiply, L.ZeroPadding2D, L.ReLU, L.LeakyReLU, L.ELU, L.Dropout, L.Identity, L.InputLayer)
"""Layers that XNNPACK's sparse inference takes whatever their arguments."""

OPERATIONS = ("Add", "Subtract", "Multiply", "Identity")
"""Operations of `keras.ops` and operators between tensors that it takes, by the class of the node."""

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "sigmoid")


class PruningPolicy(ABC):
    """Say which layers of a model to wrap, and refuse models that this makes no sense for.

    Example:
        >>> class DenseAlone(PruningPolicy):
        ...     "Prune dense layers."
        ...     def allow_pruning(self, layer):
        ...         return isinstance(layer, L.Dense)
        ...     def ensure_model_supports_pruning(self, model):
        ...         pass
        >>> from kpipe.unstructured.wrapping import prune_low_magnitude
        >>> net = keras.Sequential([keras.Input((4, 3)), L.Conv1D(2, 2, name="c"), L.Dense(2, name="d")])
        >>> [layer.name for layer in prune_low_magnitude(net, pruning_policy=DenseAlone()).layers]
        ['c', 'prune_low_magnitude_d']
    """

    @abstractmethod
    def allow_pruning(self, layer: keras.Layer) -> bool:
        """Tell whether to wrap a layer."""

    @abstractmethod
    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raise a ValueError for a model that the policy does not go with."""


class PruneForLatencyOnXNNPack(PruningPolicy):
    """Wrap the 1×1 convolutions that XNNPACK computes sparsely, in models in which it does so.

    XNNPACK runs the part of a network sparsely that lies between a stem and a global pooling. Every input has to lead
    to a stem: a 3×3 convolution of 3 channels with stride 2 and "valid" padding right behind a `ZeroPadding2D` of 1.
    Every output has to come from a `GlobalAveragePooling2D`. Between them stand 1×1 convolutions, depthwise 3×3 and 5×5
    ones, additions, multiplications, batch norms and a few activations only.

    Example:
        >>> policy = PruneForLatencyOnXNNPack()
        >>> policy.allow_pruning(L.Conv2D(8, 1)), policy.allow_pruning(L.Conv2D(8, 3))
        (True, False)

    References:
        Elsen et al., Fast Sparse ConvNets (2019), https://arxiv.org/abs/1911.09723
    """

    def allow_pruning(self, layer: keras.Layer) -> bool:
        """Tell whether it is a 1×1 convolution."""
        return isinstance(layer, L.Conv2D) and tuple(layer.kernel_size) == (1, 1)

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raise a `KpipeError` that names the first layer, input or output that XNNPACK cannot take.

        Args:
            model: A built Sequential or Functional model, nested ones too; wrapped layers are looked into.
        """
        refuse_keras2(model)
        if not is_graph(model) or not model.built:
            raise KpipeError(
                f"PruneForLatencyOnXNNPack received {model.name!r} ({type(model).__name__}): unbuilt and subclassed "
                "models have no graph to look at. Add a keras.Input, or build a Functional model."
            )
        paths = _Paths(sites(model))
        stems = paths.first(paths.inputs, paths.is_stem, paths.consumers)
        if not stems:
            raise KpipeError(
                f"Model {model.name!r} has an input that leads to no stem: a Conv2D of 3x3 with 3 input channels, "
                "strides 2 and padding 'valid', right behind a ZeroPadding2D with padding 1."
            )
        ends = paths.first(paths.outputs, _is_end, paths.producers)
        if not ends:
            raise KpipeError(f"Model {model.name!r} has an output that comes from no GlobalAveragePooling2D.")
        for site in paths.between(stems, ends):
            if not paths.supported(site):
                raise KpipeError(
                    f"Layer {site.path!r} ({type(_bare(site)).__name__}) stands between the stem and the global "
                    "pooling of the model, and PruneForLatencyOnXNNPack does not support it there: XNNPACK would not "
                    "run the network sparsely."
                )


class _Paths:
    """Walk the sites of a flow; the inputs of nested models are passed through."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.makers = {key: site for site in flow.sites for key in site.outputs}
        self.inputs = [self.makers[key] for key in flow.inputs if key in self.makers]
        self.inputs = self.inputs or [site for site in flow.sites if site.is_input and not site.inputs]
        self.outputs = [self.makers[key] for key in flow.outputs]

    def producers(self, site: Site) -> list[Site]:
        """List the sites that make what goes into a site."""
        if site.is_input and not site.inputs:
            return []
        made = [self.makers[key] for key in site.inputs if key in self.makers]
        return [other for one in made for other in (self.producers(one) if one.is_input and one.inputs else [one])]

    def consumers(self, site: Site) -> list[Site]:
        """List the sites that take what a site makes."""
        return self.flow.consumers(site)

    def first(
        self, begin: Iterable[Site], found: Callable[[Site], bool], following: Callable[[Site], list[Site]]
    ) -> list[Site]:
        """Give on every path the first site that is looked for; none at all when some path ends without one."""
        waiting, seen, result = list(begin), {}, []
        while waiting:
            site = waiting.pop()
            if id(site) in seen:
                continue
            seen[id(site)] = site
            if found(site):
                result.append(site)
            elif onward := following(site):
                waiting += onward
            else:
                return []
        return result

    def between(self, stems: list[Site], ends: list[Site]) -> list[Site]:
        """List the sites on the way from behind the stems to before the ends."""
        waiting, seen = [one for stem in stems for one in self.consumers(stem)], {}
        beyond = {id(end) for end in ends}
        while waiting:
            site = waiting.pop()
            if id(site) not in seen and id(site) not in beyond:
                seen[id(site)] = site
                waiting += self.consumers(site)
        return list(seen.values())

    def is_stem(self, site: Site) -> bool:
        """Tell whether a site is the convolution at which sparse inference begins."""
        layer = _bare(site)
        return (
            isinstance(layer, L.Conv2D)
            and tuple(layer.kernel_size) == (3, 3)
            and site.input_shapes[0][-1] == 3
            and tuple(layer.strides) == (2, 2)
            and layer.padding == "valid"
            and self.padded(site) == 1
        )

    def padded(self, site: Site) -> int | None:
        """Give the padding of the one `ZeroPadding2D` in front of a site, if it is alike on all sides."""
        producers = self.producers(site)
        layer = _bare(producers[0]) if len(producers) == 1 else None
        if not isinstance(layer, L.ZeroPadding2D):
            return None
        sizes = {size for pair in layer.padding for size in pair}
        return sizes.pop() if len(sizes) == 1 else None

    def supported(self, site: Site) -> bool:
        """Tell whether XNNPACK's sparse inference takes a site."""
        layer: Any = _bare(site)
        if not isinstance(layer, keras.Layer):
            return type(layer).__name__ in OPERATIONS
        if isinstance(layer, L.DepthwiseConv2D):
            return self.depthwise(site, layer)
        if isinstance(layer, L.Conv2D):
            ones = (layer.kernel_size, layer.strides, layer.dilation_rate)
            return layer.groups == 1 and all(tuple(size) == (1, 1) for size in ones)
        if isinstance(layer, L.GlobalAveragePooling2D):
            return layer.keepdims
        if isinstance(layer, L.BatchNormalization):
            return layer.axis in (3, -1)
        if isinstance(layer, L.UpSampling2D):
            return layer.interpolation == "bilinear"
        if isinstance(layer, L.Activation):
            return keras.activations.serialize(layer.activation) in ACTIVATIONS
        return isinstance(layer, ANY)

    def depthwise(self, site: Site, layer: L.DepthwiseConv2D) -> bool:
        """Tell whether it is a 3×3 or 5×5 one that keeps the size, or halves it behind its own padding."""
        if layer.depth_multiplier != 1 or tuple(layer.dilation_rate) != (1, 1):
            return False
        size, strides = tuple(layer.kernel_size), tuple(layer.strides)
        if size not in ((3, 3), (5, 5)):
            return False
        if layer.padding == "same":
            return strides == (1, 1)
        return strides in ((1, 1), (2, 2)) and self.padded(site) == size[0] // 2


def _is_end(site: Site) -> bool:
    return isinstance(_bare(site), L.GlobalAveragePooling2D)


def _bare(site: Site) -> Any:
    """Give the layer of a site, without its pruning wrapper."""
    layer = site.operation
    return layer.layer if isinstance(layer, PruneLowMagnitude) else layer
