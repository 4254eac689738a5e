"""The rule of a model inside a layer, such as `TimeDistributed(model)`: its own calls, one after the other."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
from keras.src.backend import set_keras_mask
from keras.src.models.functional import Functional

from kpipe.graph.flow import Flow, Key, Site, evaluate, functional, sites
from kpipe.graph.inference import at_inference
from kpipe.layers import ChannelIds, Ids, Kept, Rule, inside, rule


@rule(keras.Sequential, Functional)
def model_inside(model: Any, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Ask the rules of all its calls. A model in a graph is written out instead; this is one that a layer holds."""
    flow, places, tensors = sites(model), dict(_places(model)), dict[Key, Ids]()
    fed, found = dict(zip(flow.inputs, inputs, strict=True)), dict[str, Rule]()
    for site in flow.sites:
        if site.path in found:
            ids.refuse(f"the layer {site.path!r} of {model.name!r} inside is called more than once")
        taken = [tensors[key] for key in site.inputs] or [fed[site.outputs[0]]]
        call = ((), {}) if site.is_input else site.rebind(tensors)
        with ids.within(_steps(site.input_shapes), _steps(site.output_shapes), call):
            one = found[site.path] = inside(site.operation, ids, *places[site.path], *taken)
        if one.arguments or one.samples != 1:
            ids.refuse(f"the operation {site.path!r} of {model.name!r} inside has sizes of its own in its call")
        tensors.update(zip(site.outputs, one.outputs(len(site.outputs)), strict=True))
    return Rule(
        tuple(tensors[key] for key in flow.outputs),
        axes=_together(found, "axes"),
        config=_together(found, "config"),
        reuse=_together(found, "reuse"),
        summed=_together(found, "summed"),
        rescale=_together(found, "rescale"),
        products=[product for one in found.values() for product in one.products],
        reference=_reference(flow, found),
    )


def _steps(shapes: tuple[tuple, ...]) -> list[tuple]:
    return [shape[1:] for shape in shapes]


def _places(model: Any, path: str = "", held: str = "", config: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    """Say of each layer and operation, by its path, where the model holds it and where its config stands."""
    sequential = isinstance(model, keras.Sequential)
    name, all_of_it = ("_layers", model._layers) if sequential else ("operations", functional(model).operations)
    for number, one in enumerate(all_of_it):
        here = f"{held}{name}.{number}", f"{config}layers.{number}.config"
        yield path + one.name, here
        if isinstance(one, (keras.Sequential, Functional)):
            yield from _places(one, f"{path}{one.name}/", f"{here[0]}.", f"{here[1]}.")


def _together(found: Mapping[str, Rule], what: str) -> dict[str, Any]:
    return {name: value for one in found.values() for name, value in getattr(one, what).items()}


def _reference(flow: Flow, found: Mapping[str, Rule]) -> Callable[[Kept], Callable[..., Any]] | None:
    """Give the model with the references of what is inside; None where there are none."""
    own: dict[str, Any] = {path: one.reference for path, one in found.items() if one.reference is not None}
    if not own:
        return None

    def reference(kept: Kept) -> Callable[..., Any]:
        functions = {path: make(kept) for path, make in own.items()}

        def call(site: Site, *args: Any, **kwargs: Any) -> Any:
            return at_inference(functions.get(site.path, site.operation), *args, **kwargs)

        def model(*inputs: Any, mask: Any = None) -> Any:
            if mask is not None:
                set_keras_mask(inputs[0], mask)
            outputs = evaluate(flow, inputs, call)
            return outputs[0] if len(outputs) == 1 else outputs

        return model

    return reference
