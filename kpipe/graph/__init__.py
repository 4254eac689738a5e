"""Channel ids traced through a Functional graph; groups of channels that live and die together."""

from kpipe.graph.constant import Constant
from kpipe.graph.ending import before_probabilities, gives_probabilities, last_activation
from kpipe.graph.flow import Flow, Site, evaluate, functional, has_graph, replay, sites
from kpipe.graph.functionalize import functionalize
from kpipe.graph.inference import answer_at_rest, at_inference, at_rest
from kpipe.graph.inside import model_inside
from kpipe.graph.samples import random_inputs
from kpipe.graph.symbolic import is_block
from kpipe.graph.trace import trace
from kpipe.graph.traced import Group, Trace, TracedLayer, TracedWeight

__all__ = [
    "Constant",
    "Flow",
    "Group",
    "Site",
    "Trace",
    "TracedLayer",
    "TracedWeight",
    "answer_at_rest",
    "at_inference",
    "at_rest",
    "before_probabilities",
    "evaluate",
    "functional",
    "functionalize",
    "gives_probabilities",
    "has_graph",
    "is_block",
    "last_activation",
    "model_inside",
    "random_inputs",
    "replay",
    "sites",
    "trace",
]
