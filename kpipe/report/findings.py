"""What the figures of a run say, in sentences: the headline, the goals that were missed, what each stage brought."""

import math
from dataclasses import dataclass

from kpipe.report.causes import causes
from kpipe.report.record import FileRecord, RunRecord, StageRecord, mapping, number
from kpipe.report.tables import accuracy, drop, quotient
from kpipe.report.units import either_way, kilobytes, milliseconds, percent, points, share, times

NOISE = 1.1  # two sizes or latencies closer than this ratio are called the same

THRESHOLD = (
    f"A ratio of less than {NOISE:g} either way counts as no change. A change of speed that is smaller than the "
    "scatter of single runs, the time that nine in ten stay under over the median, is named as uncertain."
)
"""What the sentences about stages go by, told beside them."""


@dataclass(frozen=True)
class Headline:
    """Hold one of the figures at the top of a report."""

    title: str
    figure: str
    detail: str


@dataclass(frozen=True)
class Effect:
    """Hold what one stage did to the file: each ratio is before / after, None where a figure is missing.

    `scatter` is the greater ratio of p90 and median of the two files' times, and `causes` what was counted to change.
    """

    stage: str
    smaller: float | None
    smaller_gzip: float | None
    smaller_zstd: float | None
    faster: float | None
    scatter: float | None
    drop: float | None
    causes: tuple[str, ...]
    sentence: str

    @property
    def uncertain(self) -> bool:
        """Say whether a change of speed is smaller than the scatter of single runs."""
        return _within(self.faster, self.scatter)


def headline(run: RunRecord) -> list[Headline]:
    """Give the figures of the whole run: how much smaller, how much faster, at what cost in accuracy."""
    before, after = _ends(run)
    size = f"{kilobytes(before and before.bytes)} → {kilobytes(after and after.bytes)} KB"
    time = f"{milliseconds(before and before.median_ms)} → {milliseconds(after and after.median_ms)} ms"
    first, last = number(run.summary.get("accuracy_baseline")), number(run.summary.get("accuracy_delivered"))
    lost = number(run.summary.get("accuracy_drop"))
    cost = points(lost) if lost is None or lost >= 0 else f"+{points(-lost)}"
    return [
        _ratio(number(run.summary.get("smaller")), "smaller", "bigger", size),
        _ratio(number(run.summary.get("faster")), "faster", "slower", time),
        Headline(
            "points of accuracy gained" if lost is not None and lost < 0 else "points of accuracy lost",
            cost,
            f"{percent(first)} → {percent(last)}",
        ),
    ]


def _ratio(ratio: float | None, better: str, worse: str, detail: str) -> Headline:
    """Turn a ratio below one round, so that it reads as what it is: 2.00× slower, not 0.500× faster."""
    turned = ratio is not None and 0 < ratio < 1
    return Headline(worse if turned else better, times(1 / ratio if ratio and turned else ratio), detail)


def _ends(run: RunRecord) -> tuple[FileRecord | None, FileRecord | None]:
    """Give the files that the summary compares: the delivered one it names and the baseline's of the same format."""
    named = [file for file in run.delivery if file.path == run.summary.get("file")] or list(run.delivery)
    if not named:
        return None, None
    return run.baseline.file(named[0].format) if run.baseline else None, named[0]


def shortfalls(run: RunRecord) -> list[str]:
    """Name each goal that the run did not reach, in a sentence with the figures."""
    said = []
    for name, better, worse in (("smaller", "smaller", "bigger"), ("faster", "faster", "slower")):
        ratio = number(run.summary.get(name))
        if ratio is not None and ratio <= 1:
            change = _change(ratio, better, worse, noise=1) if ratio != 1 else "just the same"
            said.append(f"The delivered file is not {better} than the baseline's: it is {change}.")
    allowed = [number(stage.config.get("max_accuracy_drop")) for stage in run.stages]
    limit = min((value for value in allowed if value is not None), default=None)
    lost = number(run.summary.get("accuracy_drop"))
    if limit is not None and lost is not None and lost > limit:
        said.append(f"Accuracy fell by {points(lost)} points; the recipe allows {points(limit)}.")
    before: StageRecord | None = None
    for stage in run.stages:
        said += _missed_targets(stage, before)
        before = stage
    return said


def _missed_targets(stage: StageRecord, before: StageRecord | None) -> list[str]:
    """Compare what a stage was to leave of the MACs or the parameters with what it left."""
    said = []
    for name, wanted in mapping(stage.config.get("target")).items():
        was, left = (getattr(one, name, None) for one in (before, stage))
        kept = quotient(left, was)
        if number(wanted) is not None and kept is not None and kept > wanted:
            unit = {"macs": "MACs", "params": "parameters"}.get(name, name)
            said.append(f"{stage.name} was to leave {share(wanted)} of the {unit} and left {share(kept)}.")
    return said


def effects(run: RunRecord, format: str | None = None) -> list[Effect]:
    """Say what each stage after the first did to the file of a format (the run's own), from the files' own figures.

    A size or a latency counts as changed when the ratio of before and after is at least 1.1 either way: below that a
    latency is noise.
    """
    found, before = [], None
    for stage in run.stages:
        file = stage.file(format or run.format)
        if file is None:
            continue
        if before is not None:
            found.append(_effect(run, before, (stage, file)))
        before = (stage, file)
    return found


def _effect(run: RunRecord, before: tuple[StageRecord, FileRecord], after: tuple[StageRecord, FileRecord]) -> Effect:
    was, now = before[1], after[1]
    smaller, zipped = quotient(was.bytes, now.bytes), quotient(was.gzip_bytes, now.gzip_bytes)
    zstd, faster = quotient(was.zstd_bytes, now.zstd_bytes), quotient(was.median_ms, now.median_ms)
    scatters = [quotient(file.p90_ms, file.median_ms) for file in (was, now)]
    scatter = max((one for one in scatters if one is not None), default=None)
    why = tuple(causes(before, after))
    sentence = _sentence(smaller, zipped, faster, zstd, scatter) + (f" ({'; '.join(why)})" if why else "")
    ends = [drop(run, accuracy(*one)) for one in (before, after)]
    lost = None if ends[0] is None or ends[1] is None else ends[1] - ends[0]
    return Effect(after[0].name, smaller, zipped, zstd, faster, scatter, lost, why, sentence)


def _sentence(
    smaller: float | None,
    zipped: float | None,
    faster: float | None,
    zstd: float | None = None,
    scatter: float | None = None,
) -> str:
    """Phrase the ratios of size, compressed size and speed.

    Example:
        >>> _sentence(2.0, 2.1, 1.8)
        'made the file 2.00× smaller and 1.80× faster'
        >>> _sentence(1.0, 1.7, 1.02)
        'left size and speed as they were; only the compressed file is 1.70× smaller with gzip'
        >>> _sentence(1.5, 3.0, 1.0, 3.2)
        'made the file 1.50× smaller and left the speed as it was; the compressed file is 3.00× smaller with gzip and
        3.20× smaller with zstd'
        >>> _sentence(1.0, 1.0, 1.3, 1.0, scatter=1.5)
        'made the file 1.30× faster and left the size as it was; the change of speed is within the scatter of single
        runs, 1.50×'
        >>> _sentence(4.0, 3.0, 0.5)
        'made the file 4.00× smaller and 2.00× slower'
        >>> _sentence(1.0, 1.0, None)
        'left the size as it was; the speed was not measured'
        >>> _sentence(None, None, None)
        'was not measured on a file'
    """
    if smaller is None and faster is None:
        return "was not measured on a file"
    found = {"size": _change(smaller, "smaller", "bigger"), "speed": _change(faster, "faster", "slower")}
    changed = [text for text in found.values() if text]
    same = [name for name, text in found.items() if text == ""]
    parts = [f"made the file {' and '.join(changed)}"] if changed else []
    if same:
        parts.append("left size and speed as they were" if len(same) == 2 else f"left the {same[0]} as it was")
    text = " and ".join(parts)
    text += _squeezed(smaller, {"gzip": zipped, "zstd": zstd})
    if found["speed"] and _within(faster, scatter):
        text += f"; the change of speed is within the scatter of single runs, {times(scatter)}"
    return text + "".join(f"; the {name} was not measured" for name, text in found.items() if text is None)


def _squeezed(smaller: float | None, compressed: dict[str, float | None]) -> str:
    """Phrase what shows in the compressed size alone: where that changed and the file did not, or shrank by more."""
    same = _change(smaller, "smaller", "bigger") == ""
    told = [
        f"{change} with {name}"
        for name, ratio in compressed.items()
        if (change := _change(ratio, "smaller", "bigger")) and (same or (ratio or 0) >= NOISE * (smaller or math.inf))
    ]
    only = "only " if same else ""
    return f"; {only}the compressed file is {' and '.join(told)}" if told else ""


def _within(ratio: float | None, scatter: float | None) -> bool:
    """Say whether a ratio, either way, is smaller than a scatter; where either is unknown it is not said to be."""
    return ratio is not None and ratio > 0 and scatter is not None and max(ratio, 1 / ratio) < scatter


def _change(ratio: float | None, better: str, worse: str, noise: float = NOISE) -> str | None:
    """Phrase one ratio of before and after: None when it is unknown, empty when it is within the noise.

    Example:
        >>> _change(2.0, "smaller", "bigger"), _change(0.5, "faster", "slower"), _change(1.05, "faster", "slower")
        ('2.00× smaller', '2.00× slower', '')
    """
    if not ratio:
        return None
    return either_way(ratio, better, worse) if max(ratio, 1 / ratio) >= noise else ""


def summary_sentence(run: RunRecord) -> str:
    """Say the result in one sentence.

    Example:
        >>> from kpipe.report.record import record
        >>> summary = {"smaller": 12.3, "faster": 0.5, "accuracy_drop": 0.0028}
        >>> summary_sentence(record({"stages": [], "summary": summary}))
        '12.3× smaller and 2.00× slower than the baseline, for 0.28 points of accuracy.'
        >>> summary_sentence(record({"stages": [], "summary": {"faster": 4.0, "accuracy_drop": -0.01}}))
        '4.00× faster than the baseline, with 1.00 points of accuracy gained.'
        >>> summary_sentence(record({"stages": []}))
        'Nothing to compare: the run measured neither size nor speed against its baseline.'
    """
    phrases = [
        _change(number(run.summary.get("smaller")), "smaller", "bigger", noise=1),
        _change(number(run.summary.get("faster")), "faster", "slower", noise=1),
    ]
    if not any(phrases):
        return "Nothing to compare: the run measured neither size nor speed against its baseline."
    lost = number(run.summary.get("accuracy_drop"))
    cost = "" if lost is None else f", for {points(lost)} points of accuracy"
    if lost is not None and lost <= 0:
        cost = f", with {points(-lost)} points of accuracy gained" if lost < 0 else ", with the accuracy unchanged"
    return f"{' and '.join(phrase for phrase in phrases if phrase)} than the baseline{cost}."


def turning_points(run: RunRecord, format: str | None = None) -> list[str]:
    """Name the stages that made the file faster and those that only made it smaller, from the figures of this run."""
    brought = effects(run, format)
    names = {
        "faster": [
            f"{one.stage} ({times(one.faster)})" for one in brought if (one.faster or 0) >= NOISE and not one.uncertain
        ],
        "perhaps faster, by less than single runs scatter": [
            f"{one.stage} ({times(one.faster)})" for one in brought if (one.faster or 0) >= NOISE and one.uncertain
        ],
        "only smaller": [
            f"{one.stage} ({times(one.smaller)})"
            for one in brought
            if (one.smaller or 0) >= NOISE and one.faster is not None and one.faster < NOISE
        ],
        "only smaller once compressed": [
            f"{one.stage} ({_squeezes(one)})"
            for one in brought
            if max(one.smaller_gzip or 0, one.smaller_zstd or 0) >= NOISE
            and one.smaller is not None
            and one.smaller < NOISE
        ],
    }
    said = [f"Made the file {what}: {', '.join(stages)}." for what, stages in names.items() if stages]
    if said or not brought:
        return said
    return [f"No stage changed the file's size or speed by {NOISE:g}× or more."]


def _squeezes(one: Effect) -> str:
    ratios = {"gzip": one.smaller_gzip, "zstd": one.smaller_zstd}
    return ", ".join(f"{name} {times(ratio)}" for name, ratio in ratios.items() if ratio)
