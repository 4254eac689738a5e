"""The written report says what metrics.json says, holds together alone, and survives what is missing."""

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kpipe.errors import KpipeError
from kpipe.report import report
from kpipe.report.page import markdown, page
from kpipe.report.record import record

REFERENCES = re.compile(r"""(?:\b(?:src|href|srcset|action|data)\s*=(?!\s*["']?#)|@import|url\((?!["']?#))[^\s>]*""")
ROUNDING = {"Drop, points": 0.0051, "Seconds": 0.051, "Accuracy": 0.000051}  # else three digits: half a percent
VOID = {"meta", "br", "link", "img", "input", "hr", "base", "source"}


def html_tables(html: str) -> list[list[list[str]]]:
    """Read every table of a page: a list of rows of cells, the head first."""
    found = re.findall(r"<table[^>]*>.*?</table>", html, flags=re.DOTALL)
    return [
        [["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(table).iter("tr")]
        for table in found
    ]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Read every table of a markdown text, the rule below the head left out; refuse rows of unequal length."""
    tables = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.strip().splitlines()]
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"A table with rows of unequal length: {rows}")
        if not all(re.fullmatch(r":?-{3,}:?", cell) for cell in rows[1]):
            raise ValueError(f"A table without a rule below its head: {rows}")
        tables.append([rows[0], *rows[2:]])
    return tables


def figure(text: str) -> float | None:
    """Read a figure back: what a dash stands for is None."""
    if text == "–":
        return None
    read = re.fullmatch(r"([−\d.,]+)×? ?([kMG%])?", text)
    if read is None:
        raise ValueError(f"Not a figure: {text!r}")
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, None: 1, "%": 0.01}[read[2]]
    return float(read[1].replace(",", "").replace("−", "-")) * scale


def expected_rows(metrics: dict[str, Any]) -> list[dict[str, float]]:
    """Take the figures of the result table straight from the metrics."""
    rows = []
    for stage in metrics["stages"]:
        file = next(file for file in stage["files"] if file["format"] == "tflite")
        rows.append(
            {
                "Accuracy": file["accuracy"],
                "Drop, points": 100 * (metrics["summary"]["accuracy_baseline"] - file["accuracy"]),
                "Params": stage["measure"]["params"],
                "Nonzeros": stage["measure"]["nonzeros"],
                "MACs": stage["measure"]["macs"],
                "KB": file["bytes"] / 1000,
                "KB gzip": file["gzip_bytes"] / 1000,
                "KB zstd": file["zstd_bytes"] / 1000,
                "ms": file["latency"]["median_ms"],
                "ms p90": file["latency"]["p90_ms"],
                "Seconds": stage["seconds"],
            }
        )
    return rows


def differences(table: list[list[str]], expected: list[dict[str, float]]) -> list[str]:
    """Name the cells of a table that are further from the expected figures than rounding allows."""
    head, *rows = table
    wrong = []
    for row, figures in zip(rows, expected, strict=True):
        for column, value in figures.items():
            shown = figure(row[head.index(column)])
            if shown is None or abs(shown - value) > ROUNDING.get(column, 0.005 * abs(value)):
                wrong.append(f"{row[0]} {column}: {row[head.index(column)]} is not {value}")
    return wrong


def written_tables(folder: Path) -> list[list[list[list[str]]]]:
    return [
        html_tables((folder / "report.html").read_text(encoding="utf-8")),
        markdown_tables((folder / "report.md").read_text(encoding="utf-8")),
    ]


def test_every_figure_of_the_result_is_the_run_directory_s(metrics, write):
    folder = write(metrics)
    path = report(folder)
    assert path == folder / "report.html"
    for tables in written_tables(folder):
        assert [row[0] for row in tables[0][1:]] == [stage["name"] for stage in metrics["stages"]]
        assert differences(tables[0], expected_rows(metrics)) == []


def test_the_comparison_finds_a_figure_that_is_wrong(metrics, write):
    folder = write(metrics)
    report(folder)
    for column, path in (("ms", ("latency", "median_ms")), ("KB", ("bytes",))):
        changed = copy.deepcopy(metrics)
        place = changed["stages"][1]["files"][0]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] *= 1.02
        for tables in written_tables(folder):
            assert len(wrong := differences(tables[0], expected_rows(changed))) == 1
            assert column in wrong[0]


def test_the_delivery_is_told_with_its_ratios(metrics, write):
    folder = write(metrics)
    report(folder)
    first = {file["format"]: file for file in metrics["stages"][0]["files"]}
    for tables in written_tables(folder):
        delivered = next(table for table in tables if "Smaller" in table[0])
        for row, file in zip(delivered[1:], metrics["stages"][-1]["files"], strict=True):
            cells = dict(zip(delivered[0], row, strict=True))
            assert cells["File"] == file["path"]
            assert figure(cells["Bytes"]) == file["bytes"]
            before = first[file["format"]]
            assert figure(cells["Smaller"]) == pytest.approx(before["bytes"] / file["bytes"], rel=0.005)
            ratio = before["latency"]["median_ms"] / file["latency"]["median_ms"]
            assert figure(cells["Faster"]) == pytest.approx(ratio, rel=0.005)


def test_layers_notes_skipped_layers_and_the_recipe_are_told(metrics, write):
    folder = write(metrics)
    html, text = report(folder).read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")
    for written in (html, text):
        for expected in (
            "The head keeps its 10 channels",
            "BatchNormalization has no kernel",
            "bn1, bn2",
            "conv1/kernel",
            "an example CPU",
            "kpipe.models:digits_cnn",
            "a_long_layer_name_of_a_third_convolution",
        ):
            assert expected in written


def test_the_same_directory_gives_the_same_report(metrics, write):
    folder = write(metrics)
    first = report(folder).read_bytes()
    assert report(folder).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "latency.json",
        "metrics.json",
        "recipe.yaml",
        "report.html",
        "report.md",
    ]


def test_the_page_refers_to_nothing_outside_itself(metrics, write):
    html = report(write(metrics)).read_text(encoding="utf-8")
    assert REFERENCES.findall(html) == []
    assert "<script" not in html


@pytest.mark.parametrize(
    "planted",
    [
        '<img src="https://example.org/a.png">',
        "<link href=style.css>",
        "<style>@import 'a.css'</style>",
        "<style>a { background: url(https://example.org/a.png) }</style>",
    ],
)
def test_the_search_finds_a_reference(planted):
    html = page(record({"stages": []}))
    assert not REFERENCES.findall(html)
    assert REFERENCES.findall(html.replace("<main>", f"<main>{planted}"))


def unbalanced(html: str) -> list[str]:
    """Name the elements of a page that are not closed where they should be."""
    parser, open_elements, wrong = HTMLParser(), [], []
    parser.handle_starttag = lambda tag, attributes: open_elements.append(tag) if tag not in VOID else None
    parser.handle_startendtag = lambda tag, attributes: None
    parser.handle_endtag = lambda tag: open_elements.pop() if open_elements[-1:] == [tag] else wrong.append(tag)
    parser.feed(html)
    return wrong + open_elements


def test_the_page_is_well_formed_and_its_ids_are_unique(metrics):
    html = page(record(metrics))
    assert unbalanced(html) == []
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {name for name in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html) for name in name if name} <= set(ids)
    assert unbalanced(html.replace("</section>", "", 1))


def unfenced(text: str) -> str:
    """Take the code blocks out of a markdown text."""
    return re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


HOSTILE = "<script>alert('x')</script> | `a` *b* [c](d) & \"e\""


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    "plant",
    [
        lambda metrics: metrics.update(name=HOSTILE),
        lambda metrics: metrics["stages"][1].update(notes=[HOSTILE], skipped=[{"layer": HOSTILE, "reason": HOSTILE}]),
        lambda metrics: metrics["stages"][1].update(name=HOSTILE, config={HOSTILE: HOSTILE}),
        lambda metrics: metrics["stages"][1]["measure"]["layers"][0].update(layer=HOSTILE, kind=HOSTILE),
        lambda metrics: metrics["environment"].update({HOSTILE: HOSTILE}),
        lambda metrics: metrics["delivery"][0].update(path=HOSTILE),
        lambda metrics: metrics["stages"][2].update(details={HOSTILE: [{HOSTILE: HOSTILE}]}),
    ],
)
def test_what_a_run_says_is_shown_and_never_obeyed(metrics, write, plant: Callable):
    plant(metrics)
    folder = write(metrics, recipe=f"name: {HOSTILE}\n```\n{HOSTILE}\n")
    html = report(folder).read_text(encoding="utf-8")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert unbalanced(html) == []
    assert "<script" not in unfenced(text)
    assert "[c](d)" not in unfenced(text)
    assert markdown_tables(text)


def test_the_table_reader_refuses_a_broken_table():
    with pytest.raises(ValueError, match="unequal"):
        markdown_tables("| a | b |\n| --- | --- |\n| 1 | 2 | 3 |\n")
    with pytest.raises(ValueError, match="rule"):
        markdown_tables("| a | b |\n| 1 | 2 |\n")


def without(value: Any, keys: tuple[str, ...], put: Callable[[dict, str], Any]) -> None:
    """Take keys away wherever they are, by `put(mapping, key)`."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        without(item, keys, put)
    if isinstance(value, dict):
        for key in keys:
            if key in value:
                put(value, key)


MISSING = (
    (("latency", "faster"), ("ms", "ms p90")),
    (("macs",), ("MACs",)),
    (
        ("accuracy", "accuracy_baseline", "accuracy_delivered", "accuracy_drop", "val_accuracy", "loss"),
        ("Accuracy",),
    ),
    (("bytes", "gzip_bytes", "zstd_bytes", "smaller"), ("KB", "KB gzip", "KB zstd")),
    (("zstd_bytes", "smaller_zstd"), ("KB zstd",)),  # a run of before it was measured
    (("files", "delivery"), ("File", "KB", "ms")),
    (("measure",), ("Params", "Nonzeros", "MACs")),
    (("seconds",), ("Seconds",)),
    (("summary", "environment", "data", "history", "details", "notes", "skipped", "config"), ()),
    (("layers", "channels", "kernel_params"), ()),
    (("artifact", "stage", "index", "key", "recipe_key", "kpipe", "format", "precision"), ()),
)


@pytest.mark.parametrize("keys", [keys for keys, _ in MISSING])
def test_null_and_absent_are_the_same(metrics, keys):
    absent, null = copy.deepcopy(metrics), copy.deepcopy(metrics)
    without(absent, keys, lambda place, key: place.pop(key))
    without(null, keys, lambda place, key: place.update({key: None}))
    texts = [unfenced(markdown(record(content))) for content in (absent, null, metrics)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("keys", "columns"), MISSING)
def test_what_is_missing_shows_as_a_dash(metrics, write, keys, columns):
    without(metrics, keys, lambda place, key: place.pop(key))
    folder = write(metrics, recipe=None)
    (folder / "latency.json").unlink()
    report(folder)
    for tables in written_tables(folder):
        head, *rows = tables[0]
        assert len(rows) == 5
        for column in columns:
            assert {row[head.index(column)] for row in rows} == {"–"}
        assert ("–" not in "".join(map("".join, rows))) == (not columns and "format" not in keys)


@pytest.mark.parametrize(
    "stages", [[], [{}], [{"name": "01-train"}], [{"files": [{}], "history": {"loss": [None, 1]}}]]
)
def test_a_run_that_holds_almost_nothing_is_reported(write, stages):
    html = report(write({"stages": stages})).read_text(encoding="utf-8")
    assert "Nothing to compare" in html
    assert unbalanced(html) == []


def test_a_run_without_accuracy_shows_its_loss(metrics):
    without(metrics, ("accuracy",), lambda place, key: place.pop(key))
    head, *rows = markdown_tables(markdown(record(metrics)))[0]
    assert "Accuracy" not in head
    assert figure(rows[0][head.index("Loss")]) == pytest.approx(metrics["stages"][0]["metrics"]["loss"], rel=0.005)


def test_a_folder_that_is_no_run_is_refused(tmp_path, write, metrics):
    with pytest.raises(KpipeError, match=r"not a folder.*metrics.json"):
        report(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(KpipeError, match=r"not a run directory.*metrics.json"):
        report(empty)
    (empty / "01-train").mkdir()
    (empty / "01-train" / "entry.json").write_text("{}")
    with pytest.raises(KpipeError, match="has not finished"):
        report(empty)
    assert sorted(path.name for path in empty.iterdir()) == ["01-train"]
    report(write(metrics))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "list under"), ('{"stages": 3}', "list under"), ("\xff", "not valid JSON")],
)
def test_metrics_that_cannot_be_read_are_refused_with_their_path(tmp_path, content, message):
    (tmp_path / "metrics.json").write_text(content, encoding="latin-1")
    with pytest.raises(KpipeError, match=message) as caught:
        report(tmp_path)
    assert str(tmp_path / "metrics.json") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_report_that_cannot_be_written_is_an_error_and_leaves_nothing(metrics, write):
    folder = write(metrics)
    (folder / "report.md").mkdir()
    with pytest.raises(KpipeError, match="cannot be written"):
        report(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_numbers_that_are_none_are_told_as_such(metrics):
    metrics["stages"][1]["metrics"]["accuracy"] = float("nan")
    metrics["stages"][1]["files"][0]["accuracy"] = float("nan")
    text = markdown(record(json.loads(json.dumps(metrics))))
    assert markdown_tables(text)[0][2][1] == "NaN"
