"""Channel ids traced through a Functional graph; groups of channels that live and die together."""

from kpipe.graph.flow import Flow, Site, evaluate, functional, has_graph, replay, sites
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
    "has_graph",
    "replay",
    "sites",
    "trace",
]
