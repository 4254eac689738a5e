"""The command line: a file a verb."""

import logging

from kpipe.cli import bench, check, listing, report, run, show
from kpipe.cli.app import app

__all__ = ["app", "bench", "check", "listing", "main", "report", "run", "show"]


def main() -> None:
    """Run the command line."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    app(prog_name="kpipe")
