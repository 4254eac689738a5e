"""The house stands as it was drawn: imports point down only, and the files keep to the style."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "kpipe"
LEVELS = (
    ("errors", "atomic"),
    ("registry", "checks"),
    ("layers", "schedules", "patterns", "data", "models", "copies", "loading"),
    ("graph", "projections", "targets"),
    ("saliency", "fake_quant", "follow"),
    ("quantize",),
    ("measure", "unstructured", "structured", "cluster", "distill", "export"),
    ("pipeline", "callbacks", "legacy", "costs"),
    ("stages",),
    ("recipe", "report"),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
HEAVY = {
    "ai_edge_litert",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "sklearn",
    "tensorflow_model_optimization",
    "tf2onnx",
    "tf_keras",
}
SHAPELESS = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
LINES = 300
NAMES = 40


def sources(package: Path = PACKAGE) -> dict[str, str]:
    """Read the package: path inside it -> text."""
    return {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}


def room_of(path: str) -> str:
    """Give the room that a file stands in: the first part of its path, "" for the package's own `__init__`.

    A room is a folder or a file of that name.
    """
    first = Path(path).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Give every import of the package, wherever in the file it stands: the line, and the room ("" for the root)."""
    here = ["kpipe", *Path(path).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            modules = [f"{module}.{alias.name}" for alias in node.names] if module == "kpipe" else [module]
        else:
            continue
        for module in modules:
            root, _, rest = module.partition(".")
            if root == "kpipe":
                yield node.lineno, rest.partition(".")[0]


def misdirected(files: Mapping[str, str]) -> list[str]:
    """Name the imports that do not point down, and the rooms that stand on no level."""
    wrong = []
    for path, text in files.items():
        room = room_of(path)
        if room == "":
            continue
        if room not in LEVEL:
            wrong.append(f"{path}: the room {room!r} stands on no level")
            continue
        for line, other in imported(ast.parse(text), path):
            if other != room and LEVEL.get(other, len(LEVELS)) >= LEVEL[room]:
                wrong.append(f"{path}:{line}: {room} imports {other or 'the package itself'}, which is not below it")
    return wrong


def hurried(files: Mapping[str, str]) -> list[str]:
    """Name the heavy modules that are imported when a file is, and not inside the function that needs them."""
    wrong = []
    for path, text in files.items():
        waiting: list[ast.AST] = [ast.parse(text)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or type_checking(node):
                continue
            waiting.extend(ast.iter_child_nodes(node))
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            wrong += [f"{path}:{node.lineno}: {name}" for name in names if name.partition(".")[0] in HEAVY]
    return wrong


def type_checking(node: ast.AST) -> bool:
    """Tell whether a node is an `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def long_files(files: Mapping[str, str]) -> list[str]:
    return [f"{path}: {text.count(chr(10))} lines" for path, text in files.items() if text.count("\n") > LINES]


def shapeless(files: Mapping[str, str]) -> list[str]:
    """Name the modules and folders whose name says nothing of what is in them."""
    return [path for path in files if SHAPELESS & set(Path(path).with_suffix("").parts)]


def forbidden(files: Mapping[str, str]) -> list[str]:
    """Name each `assert` statement and each look-up by `hasattr`."""
    wrong = []
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assert):
                wrong.append(f"{path}:{node.lineno}: assert")
            elif isinstance(node, ast.Name) and node.id == "hasattr":
                wrong.append(f"{path}:{node.lineno}: hasattr")
    return wrong


CHECKS = {
    "imports point down": misdirected,
    "heavy imports wait": hurried,
    "files are short": long_files,
    "names mean something": shapeless,
    "no assert, no hasattr": forbidden,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
def test_the_house_stands_as_drawn(check):
    files = sources()
    assert len(files) > 20
    assert check(files) == []


@pytest.mark.parametrize(
    ("check", "path", "text"),
    [
        (misdirected, "layers/core.py", "from kpipe.graph import trace"),
        (misdirected, "graph/trace.py", "def look():\n    import kpipe.saliency.criteria"),
        (misdirected, "export/onnx/convert.py", "from kpipe.distill import distill"),
        (misdirected, "quantize/fold.py", "from kpipe import export"),
        (misdirected, "graph/deep/inner.py", "from ...measure import measure"),
        (misdirected, "schedules.py", "from . import patterns"),
        (misdirected, "cli/run.py", "import kpipe"),
        (misdirected, "pipeline/run.py", "from kpipe.novelties import novelty"),
        (misdirected, "novelties/one.py", "import numpy"),
        (hurried, "export/onnx/convert.py", "import onnx.helper"),
        (hurried, "report/plots.py", "class Plot:\n    from matplotlib.figure import Figure"),
        (hurried, "data/sources.py", "try:\n    from sklearn import datasets\nexcept ImportError:\n    pass"),
        (long_files, "graph/trace.py", "x = 1\n" * 301),
        (shapeless, "graph/utils.py", ""),
        (shapeless, "common/trace.py", ""),
        (forbidden, "graph/trace.py", "def f(x):\n    assert x"),
        (forbidden, "graph/trace.py", "ok = hasattr(3, 'real')"),
        (forbidden, "graph/trace.py", "look = hasattr"),
    ],
)
def test_each_check_finds_what_is_planted(tmp_path, check, path, text):
    planted = tmp_path / "kpipe" / path
    planted.parent.mkdir(parents=True)
    planted.write_text(text, encoding="utf-8")
    assert len(check(sources(tmp_path / "kpipe"))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "graph/trace.py",
            "from kpipe.layers import weights\nfrom kpipe.graph.flow import sites\nfrom .flow import sites",
        ),
        ("export/onnx/convert.py", "def write():\n    import onnx\n    from kpipe.fake_quant import bake"),
        ("report/svg.py", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
        ("__init__.py", "from kpipe.cli import main"),
        ("layers/basement.py", "# assert hasattr\n" * 300),
    ],
)
def test_no_check_finds_fault_with_what_is_right(path, text):
    assert [fault for check in CHECKS.values() for fault in check({path: text})] == []


def undocumented(package: object) -> list[str]:
    """Name the public names of a package that have no docstring of their own."""
    names = [name for name in package.__all__ if not name.startswith("__")]
    return [name for name in names if not (getattr(package, name).__doc__ or "").strip()]


def test_every_public_name_is_documented():
    import kpipe

    assert undocumented(kpipe) == []
    assert len(kpipe.__all__) <= NAMES
    assert len(set(kpipe.__all__)) == len(kpipe.__all__)


def test_a_public_name_without_a_docstring_is_found():
    from types import ModuleType

    package = ModuleType("package")
    package.__dict__.update(__all__=["plain", "sorted"], plain=lambda: None, sorted=sorted)
    assert undocumented(package) == ["plain"]
