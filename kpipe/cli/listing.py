"""`kpipe ls`: list what kpipe knows."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import keras
import typer
import yaml

from kpipe.cli.app import app, examples
from kpipe.cli.check import kinds
from kpipe.cli.console import as_table, out, plain_errors
from kpipe.cluster import INITS
from kpipe.data import SOURCES
from kpipe.errors import KpipeError
from kpipe.export import ENGINES, FORMATS
from kpipe.export.formats import METHODS
from kpipe.fake_quant import precisions
from kpipe.layers import KERNEL_ROLES, RULES, LayerFacts
from kpipe.layers.rule import QuantizationFact
from kpipe.patterns import PATTERNS, SCOPES
from kpipe.pipeline import STAGES
from kpipe.quantize.improve import IMPROVEMENTS
from kpipe.quantize.observers import OBSERVERS
from kpipe.registry import Registry, nearest
from kpipe.report.details import Row
from kpipe.report.units import DASH
from kpipe.saliency import CHANNEL_CRITERIA, CRITERIA, channel_criteria
from kpipe.schedules import SCHEDULES, arguments_of
from kpipe.targets import PRUNED_ROLES

SMALLEST = {"filters": 1, "kernel_size": 1, "activation": "relu"}
"""Arguments that layers cannot be made without."""


def first_line(item: object) -> str:
    """Give the first line of what is written about something.

    Example:
        >>> first_line(first_line)
        'Give the first line of what is written about something.'
    """
    return (inspect.getdoc(item) or "").partition("\n")[0]


def first_sentence(lines: Sequence[str]) -> str:
    """Give the first sentence of a text that goes over several lines.

    Example:
        >>> first_sentence(["Digits: a quarter", "of the MACs. Data: 8x8."])
        'Digits: a quarter of the MACs.'
    """
    return re.split(r"(?<=\.)\s", " ".join(lines), maxsplit=1)[0]


def int8_of(layer: type, fact: QuantizationFact) -> str:
    """Say whether a layer can compute in int8, from what its rule says of quantization.

    Args:
        layer: The class. Where the rule asks the layer itself, a smallest one is made.
        fact: What the rule says.

    Returns:
        The answer in words.

    Example:
        >>> from keras.layers import Conv1D, Conv2D, Flatten
        >>> [int8_of(layer, RULES[layer].quantization) for layer in (Conv1D, Conv2D, Flatten)]
        ['yes', 'yes', 'yes']
    """
    if callable(fact):
        needed = [name for name, given in inspect.signature(layer).parameters.items() if given.default is given.empty]
        needed = [name for name in needed if name != "kwargs"]
        if not set(needed) <= set(SMALLEST):
            return "depends on its arguments"
        fact = fact(layer(**{name: SMALLEST[name] for name in needed}))
    return {None: "in float", "float": "in float", "split": "yes, as several layers"}.get(fact, "yes")


def prunable(facts: LayerFacts) -> str:
    """Name the weights of a layer that are pruned, and those that are when their role is asked for.

    Args:
        facts: What is known of the layer.

    Returns:
        The answer in words.

    Example:
        >>> from keras.layers import LSTM, Flatten, SeparableConv2D
        >>> [prunable(RULES[layer]) for layer in (SeparableConv2D, LSTM, Flatten)]
        ['pointwise_kernel, depthwise_kernel (if asked for)', 'of the layers inside', '–']
    """
    if callable(facts.roles):
        return "depends on its arguments"
    roles = facts.roles or {}
    names = [name for name, role in roles.items() if role in PRUNED_ROLES]
    names += [f"{name} (if asked for)" for name, role in roles.items() if role in set(KERNEL_ROLES) - set(PRUNED_ROLES)]
    return ", ".join(names) or ("of the layers inside" if facts.whole else DASH)


def _registry(kind: str, registry: Registry) -> Callable[[], list[Row]]:
    return lambda: [{kind: name, "What it is": first_line(registry[name])} for name in registry]


def _criteria() -> list[Row]:
    return [
        {
            "Criterion": name,
            "Judges": "weights, channels" if name in CRITERIA else "channels",
            "What it is": first_line(CRITERIA[name] if name in CRITERIA else CHANNEL_CRITERIA[name]),
        }
        for name in channel_criteria()
    ]


def _stages() -> list[Row]:
    return [
        {
            "Stage": name,
            "Model": kinds(STAGES[name]),
            "What it is": first_line(STAGES[name]),
            "Keys": ", ".join(key for key in STAGES[name].model_fields if key != "stage"),
        }
        for name in STAGES
    ]


def _layers() -> list[Row]:
    return [
        {
            "Layer": layer.__name__,
            "Channels can be cut": "yes" if facts.channels else "no",
            "Weights to prune": prunable(facts),
            "int8": int8_of(layer, facts.quantization),
        }
        for layer, facts in RULES.items()
        if issubclass(layer, keras.Layer)
    ]


def _operations() -> list[Row]:
    """List the operations by the rule that they share."""
    names: dict[Callable[..., object], list[str]] = {}
    for cls, facts in RULES.items():
        if facts.channels is not None and not issubclass(cls, keras.Layer):
            names.setdefault(facts.channels, []).append(cls.__name__)
    return [
        {"Operation of keras.ops": ", ".join(alike), "What becomes of channels": first_line(function)}
        for function, alike in names.items()
    ]


def _schedules() -> list[Row]:
    return [
        {
            "Schedule": name,
            "What it is": first_line(SCHEDULES[name]),
            "Arguments": ", ".join(arguments_of(SCHEDULES[name])),
        }
        for name in SCHEDULES
    ]


def _patterns() -> list[Row]:
    return [
        {
            "Pattern": name,
            "Such as": PATTERNS.facts(name).get("example", name),
            "What it is": first_line(PATTERNS[name]),
        }
        for name in PATTERNS
    ]


def _schemes() -> list[Row]:
    return [
        {
            "Scheme": name,
            "Weights": f"{scheme.weights} bits",
            "Activations": "float" if scheme.activations is None else f"{scheme.activations} bits",
            **{f"Files by {method}": _files(name, method) for method in METHODS},
            "What it is": scheme.what,
        }
        for name, scheme in precisions().items()
    ]


def _files(precision: str, method: str) -> str:
    """List the suffixes of the files that a method gives in a precision."""
    written = [FORMATS[form].suffix for form in FORMATS if precision in FORMATS[form].precisions_by(method)]
    return ", ".join(written) or "-"


def _formats() -> list[Row]:
    return [
        {
            "Format": name,
            "File": FORMATS[name].suffix,
            "Precisions": ", ".join(dict.fromkeys(one for by in METHODS for one in FORMATS[name].precisions_by(by))),
            "Runtime": first_line(FORMATS[name].runtime),
        }
        for name in FORMATS
    ]


def _engines() -> list[Row]:
    return [{"Engine": name, "Format": ENGINES[name].format, "What it is": ENGINES[name].about} for name in ENGINES]


def _recipes() -> list[Row]:
    return [{"Recipe": str(path), "What it is": _heading(path)} for path in sorted(Path("recipes").glob("*.yaml"))]


def _heading(path: Path) -> str:
    """Give the first sentence of the comment at a recipe's head, or its name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("#!")]
    return first_sentence(comments) if comments else str((yaml.safe_load("\n".join(lines)) or {}).get("name", ""))


LISTS: dict[str, Callable[[], list[Row]]] = {
    "stages": _stages,
    "criteria": _criteria,
    "layers": _layers,
    "operations": _operations,
    "schedules": _schedules,
    "patterns": _patterns,
    "scopes": _registry("Scope", SCOPES),
    "inits": _registry("Start of clusters", INITS),
    "schemes": _schemes,
    "observers": _registry("Observer", OBSERVERS),
    "improvements": _registry("Improvement", IMPROVEMENTS),
    "formats": _formats,
    "engines": _engines,
    "data": _registry("Data", SOURCES),
    "recipes": _recipes,
}


@app.command("ls", epilog=examples("kpipe ls", "kpipe ls criteria", "kpipe ls stages layers"))
def ls(
    what: Annotated[list[str] | None, typer.Argument(help=f"Any of: {', '.join(LISTS)}. Default: all.")] = None,
) -> None:
    """List what kpipe knows: stages, criteria, layers, schedules, patterns, scopes, formats, data sources and so on."""
    with plain_errors():
        for name in what or LISTS:
            if name not in LISTS:
                raise KpipeError(f"Unknown list {name!r}. Known: {', '.join(LISTS)}.{nearest(name, LISTS)}")
            rows = LISTS[name]()
            out().print(as_table(rows, title=name) if rows else f"{name}: none here")
