"""What a run noted in its own words, as rows of text: the unit of a figure is guessed from its name alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from kpipe.report.record import StageRecord
from kpipe.report.units import DASH, percent, plain, share

Row = dict[str, str]
LONG = 40  # rows of a table, after which the rest is only counted
EXACT = ("argmax", "within", "accuracy")  # fractions of samples: every hundredth of a percent may be one
DRAWN = ("asked", "reached")  # curves of a schedule: points for a drawing, no figures to read
ROUGH = ("sparsity", "ratio", "fraction", "share")


def words(name: Any) -> str:
    """Give a field's name as words.

    Example:
        >>> words("argmax_agreement")
        'argmax agreement'
    """
    return str(name).replace("_", " ")


def written(name: str, value: Any) -> str:
    """Write a value of any kind.

    Args:
        name: The field's name, which tells a fraction from a plain number.
        value: What it holds.

    Returns:
        The text; long lists are only counted.

    Example:
        >>> written("argmax_agreement", 0.9961), written("sparsity", 0.6), written("temperature", 3.0)
        ('99.61 %', '60.0 %', '3')
        >>> written("shape", [3, 3, 1, 16]), written("removed", list(range(9))), written("bias", True)
        ('3 × 3 × 1 × 16', '9 values', 'yes')
    """
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(name, value)
    if isinstance(value, list | tuple) and not value:
        return "none"
    if isinstance(value, list | tuple) and len(value) <= 6:
        return (" × " if name == "shape" else ", ").join(written("", item) for item in value)
    return f"{len(value)} values" if isinstance(value, Mapping | list | tuple) else str(value)


def _number(name: str, value: float) -> str:
    if isinstance(value, float) and 0 <= value <= 1:
        for kinds, write in ((EXACT, percent), (ROUGH, share)):
            if any(kind in name for kind in kinds):
                return write(value)
    return plain(value)


def single(value: Any) -> bool:
    """Tell whether a value is one figure or text, neither a mapping nor a list."""
    return not isinstance(value, Mapping | list | tuple)


def facts_table(facts: Mapping[str, Any]) -> list[Row]:
    """Give a mapping of single values, one row each; nested values are left out.

    Example:
        >>> facts_table({"python": "3.11", "threads": 1, "nested": {"a": 1}})
        [{'Name': 'python', 'Value': '3.11'}, {'Name': 'threads', 'Value': '1'}]
    """
    return [{"Name": words(name), "Value": written(name, value)} for name, value in facts.items() if single(value)]


def details_tables(stage: StageRecord) -> list[tuple[str, list[Row]]]:
    """Give what a stage noted of its own work, as titled tables: its single values, its mappings, its lists of them."""
    facts = facts_table(stage.details)
    return [*([("Noted", facts)] if facts else []), *_tables(stage.details, "")]


def _flat(facts: Mapping[str, Any], above: str = "") -> list[Row]:
    """Give the single values of a mapping and of those within it, one row each, named by their way down."""
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{above}{words(name)}: ")
        elif single(value):
            rows.append({"Name": f"{above}{words(name)}", "Value": written(name, value)})
    return rows


def _tables(details: Mapping[str, Any], above: str) -> Iterable[tuple[str, list[Row]]]:
    for name, value in details.items():
        title = f"{above}{words(name)}"
        if isinstance(value, Mapping):
            if not above and (facts := _flat(value)):
                yield title, facts
            yield from _tables(value, f"{title}: ")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            more = f" (the first {LONG} of {len(value)})" if len(value) > LONG else ""
            yield title + more, _rows(value[:LONG])


def _rows(items: list[Mapping[str, Any]]) -> list[Row]:
    columns = list(dict.fromkeys(key for item in items for key in item if key not in DRAWN))
    return [{words(key): written(key, item.get(key)) for key in columns} for item in items]
