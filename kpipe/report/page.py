"""A run directory as `report.md` and as one `report.html` that needs nothing else."""

import json
from pathlib import Path
from typing import Any

from kpipe.atomic import replace_atomically
from kpipe.errors import KpipeError
from kpipe.report import findings, plots, tables
from kpipe.report.details import details_tables
from kpipe.report.record import RunRecord, StageRecord, read
from kpipe.report.schedules import schedules_over_steps
from kpipe.report.terms import TERMS


def report(run_directory: str | Path) -> Path:
    """Write the report of a run beside its figures.

    The report is a function of the run directory alone: `metrics.json`, `latency.json` and `recipe.yaml`. Nothing is
    measured anew, so the same folder always gives the same report. A figure that the run does not have shows as a dash.

    Args:
        run_directory: The folder that a run delivered into. `report.md` and `report.html` are written there.

    Returns:
        The path of `report.html`: one file without scripts and without anything fetched from elsewhere.

    Raises:
        KpipeError: The folder is not that of a finished run, or it cannot be written to.
    """
    folder = Path(run_directory)
    run = read(folder)
    written = {"report.md": markdown(run), "report.html": page(run)}
    for name, text in written.items():
        _write(folder / name, text)
    return folder / "report.html"


def markdown(run: RunRecord) -> str:
    """Give the report of a run as markdown."""
    return _template("report.md.jinja", escape=False).render(_content(run)).rstrip() + "\n"


def page(run: RunRecord) -> str:
    """Give the report of a run as one HTML page, drawings included."""
    drawings = {
        "against": [plots.accuracy_against_size(run), plots.accuracy_against_latency(run)],
        "drawn_layers": [plots.channels_per_layer(run), plots.sparsity_per_layer(run)],
        "curves": plots.training_curves(run),
        "schedules": schedules_over_steps(run),
    }
    return _template("page.html.jinja", escape=True).render(**_content(run), **drawings)


def _content(run: RunRecord) -> dict[str, Any]:
    """Give all that a template shows, as text and tables."""
    return {
        "run": run,
        "sentence": findings.summary_sentence(run),
        "headline": findings.headline(run),
        "shortfalls": findings.shortfalls(run),
        "results": tables.run_table(run),
        "delivery": tables.delivery_table(run),
        "agreement": tables.agreement_table(run),
        "files": tables.file_table(run),
        "threshold": findings.THRESHOLD,
        "effects": [_effects(run, name) for name in run.formats if findings.effects(run, name)],
        "stages": [_stage(stage) for stage in run.stages],
        "layers": tables.layer_table(run),
        "setting": tables.setting_table(run),
        "terms": TERMS,
    }


def _effects(run: RunRecord, format: str) -> dict[str, Any]:
    return {
        "format": tables.FORMAT_NAMES.get(format, format),
        "stages": findings.effects(run, format),
        "summary": findings.turning_points(run, format),
    }


def _stage(stage: StageRecord) -> dict[str, Any]:
    return {
        "name": stage.name,
        "notes": stage.notes,
        "skipped": tables.skipped_table(stage),
        "details": details_tables(stage),
        "config": json.dumps(stage.config, indent=2, ensure_ascii=False) if stage.config else "",
    }


def _template(name: str, escape: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    environment.filters["fence"] = fence
    environment.tests["numeric"] = tables.is_numeric
    environment.tests["numeric_in"] = lambda column, rows: tables.is_numeric(rows, column)
    return environment.get_template(name)


def cell(text: str) -> str:
    """Write text so that markdown shows it as it is, also within a table.

    Example:
        >>> print(cell("a|b <script> *x*"))
        a\\|b &lt;script> \\*x\\*
    """
    escaped = "".join(f"\\{letter}" if letter in "\\|*`[]" else letter for letter in " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def fence(text: str) -> str:
    """Give a code fence that is longer than any run of backticks in `text`.

    Example:
        >>> fence("a: b"), fence("```")
        ('```', '````')
    """
    longest = run = 0
    for letter in text:
        run = run + 1 if letter == "`" else 0
        longest = max(longest, run)
    return "`" * max(3, longest + 1)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with replace_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise KpipeError(
            f"'{path}' cannot be written ({reason}). Free some space or grant the right to write."
        ) from error
