"""The page of what can be written: its head, its tables and its notes."""

from collections.abc import Mapping
from typing import Any

from families import TESTED

SAMPLES = 16
"""On how many the files are compared with the float model."""
HEAD = """# What can be written

Made by `python benchmarks/support.py`; a test holds it against the registries and measures some of it anew. Each file
was run in its runtime and compared with the Keras model. In a cell stand the greatest difference from the model as it
was quantized (in steps of the output's grid where whole numbers come out, else in percent of the greatest output) and,
after the stroke where it differs, from the float model. The small networks have random weights and are compared on
{samples} drawn samples. Those of keras.applications, at their smallest, were trained on Fashion-MNIST for some minutes
and are compared on {tested} test images; their [accuracy](#accuracy-of-the-trained-networks) stands below. A number in
brackets leads to a note: what computes in float, or keeps weights of more bits, inside the file; *no* means that the
file is refused, with the reason. From one kind of processor to the next the figures differ a little.

All of it is kpipe's own way; what TensorFlow's converter makes of layers by `method="converter"`, to int8 or `int16x8`,
is shown in [quantization.md](quantization.md#tensorflows-own-way-by-name).
"""


def precisions() -> list[str]:
    """Ask the registry for the precisions of files."""
    from kpipe.fake_quant import SCHEMES

    return ["float32", *SCHEMES]


def shown(one: Mapping[str, Any], notes: list[str]) -> str:
    """Write a cell; what it has to say at length joins the notes."""
    text = one.get("why") if one["state"] != "works" else one["notes"]
    mark = ""
    if text:
        if text not in notes:
            notes.append(text)
        mark = f" [{notes.index(text) + 1}]"
    if one["state"] != "works":
        return {"refused": "no", "fault": "**fault**"}[one["state"]] + mark
    own = f"{one['steps']:.1f} steps" if one["steps"] is not None else percent(one["error"])
    away = percent(one["from_float"])
    return f"{own if own == away else f'{own} / {away}'}{mark}"


def accuracies(record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write what the files of trained networks know, a row a network; .tflite and .onnx where they differ."""
    from kpipe.export import FORMATS

    rows = []
    for model, cells in record.items():
        if any("accuracy" in one for one in cells.values()):
            found = [[cells.get(f"{name} {one}", {}).get("accuracy") for name in FORMATS] for one in precisions()]
            texts = [["no" if one is None else f"{100 * one:.1f} %" for one in each] for each in found]
            rows.append(f"| {model} | {' | '.join(' / '.join(dict.fromkeys(each)) for each in texts)} |")
    if not rows:
        return []
    head = f"Accuracy on {TESTED} test images; where the two differ, first that of the .tflite, then that of the .onnx."
    table = [f"| | {' | '.join(precisions())} |", "|---" * (1 + len(precisions())) + "|"]
    return ["## Accuracy of the trained networks", "", head, "", *table, *rows, ""]


def percent(fraction: float) -> str:
    """Write a fraction in percent.

    Example:
        >>> percent(0.0312), percent(2e-7)
        ('3.1 %', '< 0.01 %')
    """
    return "< 0.01 %" if fraction < 1e-4 else f"{100 * fraction:.{1 if fraction >= 1e-3 else 2}f} %"


def page(record: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the page: a table a format, then the notes.

    Args:
        record: Model -> its cells, as `row` gives them.
    """
    from kpipe.export import FORMATS

    notes: list[str] = []
    lines = [HEAD.format(samples=SAMPLES, tested=TESTED)]
    columns = precisions()
    for name in FORMATS:
        lines += [f"## {FORMATS[name].suffix}", "", f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
        for model, cells in record.items():
            texts = [shown(cells[f"{name} {one}"], notes) if f"{name} {one}" in cells else "—" for one in columns]
            lines.append(f"| {model} | {' | '.join(texts)} |")
        lines.append("")
    lines += accuracies(record)
    if notes:
        lines += ["## Notes", ""] + [f"{number}. {note}" for number, note in enumerate(notes, 1)] + [""]
    return "\n".join(lines)
