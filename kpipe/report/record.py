"""What a run wrote down, as values: the only source of every figure in a report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kpipe.errors import KpipeError


@dataclass(frozen=True)
class FileRecord:
    """Hold what was measured on one exported file; None stands for what was not."""

    path: str
    format: str | None = None
    precision: str | None = None
    bytes: int | None = None
    gzip_bytes: int | None = None
    zstd_bytes: int | None = None
    accuracy: float | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    agreement: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    recurrent: str | None = None


@dataclass(frozen=True)
class LayerRecord:
    """Hold what was counted in one layer."""

    layer: str
    kind: str
    params: int | None = None
    nonzeros: int | None = None
    macs: int | None = None
    channels: int | None = None
    kernel_params: int | None = None
    kernel_nonzeros: int | None = None

    @property
    def sparsity(self) -> float | None:
        """Give the fraction of zeros in the layer's kernels, None for a layer without one.

        Where the run did not count kernels apart, it is the fraction among all the layer's parameters.
        """
        total, nonzeros = self.kernel_params, self.kernel_nonzeros
        if total is None:
            total, nonzeros = self.params, self.nonzeros
        return 1 - nonzeros / total if total and nonzeros is not None else None


@dataclass(frozen=True)
class StageRecord:
    """Hold one stage of a run: what it was asked, what it left behind, what was measured."""

    name: str
    stage: str
    artifact: str | None
    accuracy: float | None
    loss: float | None
    params: int | None
    nonzeros: int | None
    macs: int | None
    sparsity: float | None
    seconds: float | None
    layers: tuple[LayerRecord, ...]
    files: tuple[FileRecord, ...]
    notes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    config: Mapping[str, Any]
    history: Mapping[str, Any]
    details: Mapping[str, Any]

    def file(self, format: str | None) -> FileRecord | None:
        """Give the stage's first file of a format, None when it has none."""
        return next((file for file in self.files if file.format == format), None)


@dataclass(frozen=True)
class RunRecord:
    """Hold a whole run, as its folder tells it."""

    name: str
    version: str | None
    key: str | None
    stages: tuple[StageRecord, ...]
    delivery: tuple[FileRecord, ...]
    summary: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    latency: Mapping[str, Any]
    recipe: str | None

    @property
    def baseline(self) -> StageRecord | None:
        """Give the stage that everything is compared with: the one the summary names, else the first."""
        named = [stage for stage in self.stages if stage.name == self.summary.get("baseline")]
        return (named or list(self.stages) or [None])[0]

    def measured(self) -> list[StageRecord]:
        """Give the stages with a float model whose layers were counted; any with counted layers where none is."""
        counted = [stage for stage in self.stages if stage.layers]
        return [stage for stage in counted if stage.artifact in (None, "float")] or counted

    @property
    def formats(self) -> list[str]:
        """Give the formats of the run's files, the one in which the stages are compared first."""
        found = dict.fromkeys(file.format for stage in self.stages for file in stage.files if file.format)
        return sorted(found, key=lambda one: one != self.format)

    @property
    def format(self) -> str | None:
        """Give the format in which the stages are compared: the baseline's, LiteRT first."""
        for stages in ([self.baseline] if self.baseline else [], self.stages):
            found = [file.format for stage in stages for file in stage.files if file.format]
            if found:
                return "tflite" if "tflite" in found else found[0]
        return None


def number(value: Any) -> Any:
    """Give a number as it is and None for anything else.

    Example:
        >>> number(0.5), number("0.5"), number(True), number(None)
        (0.5, None, None, None)
    """
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """Give a mapping as it is and an empty one for anything else.

    Example:
        >>> mapping({"a": 1}), mapping(None)
        ({'a': 1}, {})
    """
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """Give a list or tuple as a list, an empty one for nothing, and one item for anything else.

    Example:
        >>> sequence([1, 2]), sequence(None), sequence("a note")
        ([1, 2], [], ['a note'])
    """
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _file(raw: Any) -> FileRecord:
    raw = mapping(raw)
    latency = mapping(raw.get("latency"))
    return FileRecord(
        path=str(raw.get("path", "")),
        format=_text(raw.get("format")),
        precision=_text(raw.get("precision")),
        bytes=number(raw.get("bytes")),
        gzip_bytes=number(raw.get("gzip_bytes")),
        zstd_bytes=number(raw.get("zstd_bytes")),
        accuracy=number(raw.get("accuracy")),
        median_ms=number(latency.get("median_ms")),
        p90_ms=number(latency.get("p90_ms")),
        agreement=mapping(raw.get("agreement")),
        batch=number(raw.get("batch")),
        recurrent=_text(raw.get("recurrent")),
    )


def _layer(raw: Any) -> LayerRecord:
    raw = mapping(raw)
    names = ("params", "nonzeros", "macs", "channels", "kernel_params", "kernel_nonzeros")
    counts = {name: number(raw.get(name)) for name in names}
    return LayerRecord(layer=str(raw.get("layer", "")), kind=str(raw.get("kind", "")), **counts)


def _stage(raw: Any) -> StageRecord:
    raw = mapping(raw)
    metrics, counted = mapping(raw.get("metrics")), mapping(raw.get("measure"))
    skipped = [mapping(item) for item in sequence(raw.get("skipped"))]
    return StageRecord(
        name=str(raw.get("name") or raw.get("stage") or ""),
        stage=str(raw.get("stage") or ""),
        artifact=_text(mapping(raw.get("artifact")).get("kind")),
        accuracy=number(metrics.get("accuracy")),
        loss=number(metrics.get("loss")),
        params=number(counted.get("params")),
        nonzeros=number(counted.get("nonzeros")),
        macs=number(counted.get("macs")),
        sparsity=number(counted.get("sparsity")),
        seconds=number(raw.get("seconds")),
        layers=tuple(_layer(item) for item in sequence(counted.get("layers"))),
        files=tuple(_file(item) for item in sequence(raw.get("files"))),
        notes=tuple(str(note) for key in ("warnings", "notes") for note in sequence(raw.get(key))),
        skipped=tuple((str(item.get("layer", "")), str(item.get("reason", ""))) for item in skipped),
        config=mapping(raw.get("config")),
        history=mapping(raw.get("history")),
        details=mapping(raw.get("details")),
    )


def _completed(delivered: FileRecord, stages: tuple[StageRecord, ...]) -> FileRecord:
    """Fill what the delivery leaves out with what the last stage that wrote the file says of it."""
    written = [file for stage in stages for file in stage.files if Path(file.path).name == Path(delivered.path).name]
    if not written:
        return delivered
    absent = [item.name for item in fields(delivered) if getattr(delivered, item.name) in (None, {})]
    return replace(delivered, **{name: getattr(written[-1], name) for name in absent})


def record(metrics: Mapping[str, Any], recipe: str | None = None, latency: Any = None) -> RunRecord:
    """Give the record of a run from its metrics.

    Args:
        metrics: The content of `metrics.json`. A figure that is absent or null becomes None.
        recipe: The text of `recipe.yaml`.
        latency: The content of `latency.json`.

    Returns:
        The record.

    Raises:
        KpipeError: `metrics` has no list of stages.

    Example:
        >>> record({"name": "tiny", "stages": [{"name": "01-train", "metrics": {"accuracy": 0.5}}]}).baseline.accuracy
        0.5
    """
    if not isinstance(metrics, Mapping) or not isinstance(metrics.get("stages"), list):
        raise KpipeError('These are not the metrics of a run: expected a mapping with a list under "stages".')
    stages = tuple(_stage(item) for item in metrics["stages"])
    return RunRecord(
        name=str(metrics.get("name") or "run"),
        version=_text(metrics.get("kpipe")),
        key=_text(metrics.get("recipe_key")),
        stages=stages,
        delivery=tuple(_completed(_file(item), stages) for item in sequence(metrics.get("delivery"))),
        summary=mapping(metrics.get("summary")),
        data=mapping(metrics.get("data")),
        environment=mapping(metrics.get("environment")),
        latency=mapping(latency),
        recipe=recipe,
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise KpipeError(f"'{path}' is not valid JSON ({error}). Run the recipe again to write it anew.") from error


def read(run_directory: str | Path) -> RunRecord:
    """Read a run directory.

    Args:
        run_directory: The folder that a run delivered into.

    Returns:
        The record.

    Raises:
        KpipeError: The folder does not exist, holds no finished run, or its `metrics.json` cannot be read.
    """
    folder = Path(run_directory)
    expected = "Expected the folder that `kpipe run` delivered into, with metrics.json in it"
    if not folder.is_dir():
        raise KpipeError(f"'{folder}' is not a folder. {expected}, for example exported/digits.")
    metrics = folder / "metrics.json"
    if not metrics.is_file():
        if any(folder.glob("*/entry.json")):
            raise KpipeError(f"The run in '{folder}' has not finished. {expected}: run the recipe again, it continues.")
        raise KpipeError(f"'{folder}' is not a run directory: it holds no metrics.json. {expected}.")
    content = _json(metrics)
    recipe, latency = folder / "recipe.yaml", folder / "latency.json"
    try:
        return record(
            content,
            recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
            latency=_json(latency) if latency.is_file() else None,
        )
    except KpipeError as error:
        raise KpipeError(f"'{metrics}' cannot be reported. {error}") from error
