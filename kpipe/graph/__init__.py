"""Channel ids traced through a Functional graph; groups of channels that live and die together."""

from kpipe.graph.flow import Flow, Site, evaluate, functional, has_graph, replay, sites
from kpipe.graph.functionalize import functionalize
from kpipe.graph.inside import model_inside
from kpipe.graph.samples import random_inputs
from kpipe.graph.trace import trace
from kpipe.graph.traced import Group, Trace, TracedLayer, TracedWeight

__all__ = [
    "Flow",
    "Group",
    "Site",
    "Trace",
    "TracedLayer",
    "TracedWeight",
    "evaluate",
    "functional",
    "functionalize",
    "has_graph",
    "model_inside",
    "random_inputs",
    "replay",
    "sites",
    "trace",
]
