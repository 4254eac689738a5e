"""Whether delivered LiteRT files answer on a 64-bit ARM processor as they do here.

A small Debian for arm64 is unpacked into build/arm64, with ai-edge-litert and numpy in the versions that are installed
here, and run by QEMU, which emulates the processor: its answers count, its speed says nothing. Every .tflite file below
exported/ that a recipe lies with is run there and here on samples of the recipe's test split. Files in float must agree
within a relative error of 1e-4; those in whole numbers must have 97 % of the values within two steps of the output's
grid, none beyond six, and the same greatest output on 99 % of the samples; the accuracies on these samples must be
equal but for one sample in two hundred.

    make arm64-check                                    # as root; the packages qemu-user-static and debootstrap
    python benchmarks/arm64_check.py exported/digits    # the files of one run

What it fetches (some 130 MB) stays in build/arm64. Where something is missing it says what, and skips.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import arm64_check_machine as machine
import numpy as np

ROOT = Path(__file__).parent.parent
SAMPLES = 200
SAME_ACCURACY = 0.005
HEAD = """| file | precision | kernels | arm64 against this machine | accuracy here | on arm64 | |
|---|---|---|---|---:|---:|---|"""


@dataclass(frozen=True)
class Comparison:
    """How a file answers there and here.

    Args:
        file: Its path.
        precision: The file's.
        kernels: Whose kernels ran it there.
        agreement: How the answers agree, in words.
        here: Accuracy on this machine; None where the labels are no classes.
        there: Accuracy on arm64.
        faults: What is beyond the bars.
    """

    file: str
    precision: str
    kernels: str
    agreement: str
    here: float | None
    there: float | None
    faults: tuple[str, ...] = ()


def delivered(folder: Path) -> list[tuple[Path, Path]]:
    """Find the .tflite files below a folder, each with the recipe of the run that it belongs to."""
    found = []
    for path in sorted(folder.rglob("*.tflite")):
        recipe = next((up / "recipe.yaml" for up in path.parents if (up / "recipe.yaml").exists()), None)
        if recipe is not None:
            found.append((path, recipe))
    return found


def test_split(recipe: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load the first samples of a recipe's test split, and their labels."""
    import yaml

    from kpipe.data import load

    head = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    given = {key: value for key, value in head["data"].items() if key not in ("limit", "options")}
    x, y = load(**given, seed=head.get("seed", 0), **head["data"].get("options", {})).test
    return x[:SAMPLES], y[:SAMPLES]


def agreement_of(ports: Sequence[Any], here: Sequence[np.ndarray], there: Sequence[np.ndarray]) -> Any:
    """Measure how answers there agree with those here, in steps of the outputs' own grids."""
    from kpipe.export.file import Agreement
    from kpipe.export.steps import steps_apart
    from kpipe.export.verify import relative_error, same_argmax

    pairs = list(zip(there, here, ports, strict=True))
    steps = [steps_apart(a, b, port.scale).ravel() for a, b, port in pairs if port.scale]
    together = np.concatenate(steps) if len(steps) == len(pairs) else None
    return Agreement(
        max_relative_error=max(relative_error(a, b) for a, b, _ in pairs),
        within_two_steps=None if together is None else float((together <= 2.01).mean()),
        max_steps=None if together is None else float(together.max()),
        argmax_agreement=float(np.mean([same_argmax(a, b).mean() for a, b, _ in pairs])),
        samples=len(here[0]),
        source="data",
    )


def judge(inspection: Any, agreement: Any, here: float | None, there: float | None) -> tuple[str, ...]:
    """Say what is beyond the bars.

    Args:
        inspection: What is inside the file.
        agreement: How its answers agree.
        here: Accuracy on this machine; None where the labels are no classes.
        there: Accuracy on arm64.
    """
    from kpipe.errors import ExportError
    from kpipe.export.tolerance import check

    faults = []
    exact = agreement.max_steps is None and not inspection.hybrids
    try:
        check(agreement, "float32" if exact else inspection.precision, "The file", inspection.hybrids)
    except ExportError as fault:
        faults.append(str(fault).replace("the Keras model", "this machine"))
    if here is not None and there is not None and abs(here - there) > SAME_ACCURACY + 1e-9:
        faults.append(f"accuracy {here:.2%} here, {there:.2%} on arm64")
    return tuple(faults)


def compare(root: Path, folder: Path) -> list[Comparison]:
    """Run the files below a folder there and here."""
    from kpipe.export import inspect
    from kpipe.export.litert.runtime import LiteRTRuntime
    from kpipe.export.runtime import from_port, to_port
    from kpipe.pipeline.task import accuracy

    files = delivered(folder)
    if not files:
        raise machine.Skipped(f"there is no .tflite file of a run below {folder}; `make demo` delivers one")
    splits = {recipe: test_split(recipe) for recipe in {recipe for _, recipe in files}}
    jobs, answers, ports = [], [], []
    for path, recipe in files:
        with LiteRTRuntime(path) as runtime:
            x = splits[recipe][0]
            answers.append(runtime.run([x]))
            ports.append(runtime.outputs)
            jobs.append((path, [to_port(x, runtime.inputs[0])]))
    print(f"running {len(files)} files under {machine.EMULATOR} ...", flush=True)
    results = []
    for n, (kernels, given) in enumerate(machine.run_there(root, jobs)):
        path, recipe = files[n]
        there = [from_port(array, port) for array, port in zip(given, ports[n], strict=True)]
        right = [accuracy(outputs[0], splits[recipe][1]) for outputs in (answers[n], there)]
        found, agreement = inspect(path), agreement_of(ports[n], answers[n], there)
        faults = judge(found, agreement, *right)
        name = str(path.relative_to(folder))
        results.append(Comparison(name, found.precision, kernels, str(agreement), *right, faults=faults))
    return results


def line(one: Comparison) -> str:
    """Write a row of the table."""
    right = ["" if value is None else f"{100 * value:.1f} %" for value in (one.here, one.there)]
    verdict = "; ".join(one.faults) or "ok"
    return f"| {one.file} | {one.precision} | {one.kernels} | {one.agreement} | {right[0]} | {right[1]} | {verdict} |"


def main() -> int:
    """Prepare, run, print a table, write JSON; give 1 when a file is beyond the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "exported", help="where files were delivered")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    try:
        machine.check_tools()
        root = machine.prepare()
        machine.install(root)
        results = compare(root, options.folder)
    except machine.Skipped as reason:
        print(f"skipped: {reason}.")
        return 0
    print(HEAD)
    for one in results:
        print(line(one))
    target = Path(__file__).parent / "results" / "arm64_check.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    return int(any(one.faults for one in results))


if __name__ == "__main__":
    sys.exit(main())
