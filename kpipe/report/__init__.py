"""From a run directory to markdown and one self-contained page."""

from kpipe.report.page import report

__all__ = ["report"]
