"""Channel ids traced through a Functional graph; groups of channels that live and die together."""

from kpipe.graph.flow import Flow, Site, functional, replay, sites
from kpipe.graph.trace import Group, Trace, TracedLayer, TracedWeight, trace

__all__ = ["Flow", "Group", "Site", "Trace", "TracedLayer", "TracedWeight", "functional", "replay", "sites", "trace"]
