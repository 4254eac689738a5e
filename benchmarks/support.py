"""What can be written: every kind of small network, in every format and precision, as docs/support.md shows it.

The rows are the networks of the tests and, in the slow part, some of kinds that many ship, with random weights, and one
of each family of keras.applications at its smallest, trained for some minutes on Fashion-MNIST; formats and precisions
are asked of the registries. Each network is quantized by each scheme, written, run in the format's runtime and held
against the Keras model; then the file is looked into once more: its precision and the types of its weights must be what
was asked for, and where no layer was named as computing in float, nothing may. A cell that raises anything but a
`KpipeError`, or fails here, is a fault.

    python benchmarks/support.py                 # the networks of the tests: some minutes; the others stay as they are
    KPIPE_DATA=folder-of-fashion_mnist.npz python benchmarks/support.py --slow   # the others; goes on where it was
    python benchmarks/support.py --only gru      # these anew; may be given several times
    python benchmarks/support.py --render        # docs/support.md from what is kept in benchmarks/records/support.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import families
import numpy as np
from support_nets import NETS
from support_page import SAMPLES, page, precisions

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the networks of the tests
RECORD = Path(__file__).parent / "records" / "support.json"
PAGE = ROOT / "docs" / "support.md"
WRONG = 1.0
"""A file whose answers are this far from the float model's, by the greatest of these, is not a rounded one of it."""
NAMES_SHOWN = 3
CALIBRATION = 128


@dataclass(frozen=True)
class Subject:
    """Hold a network with what it is tried on.

    Args:
        model: The float model.
        calibration: One array for each input; None: drawn.
        inputs: On which files are compared; None: drawn.
        labels: Those of `inputs`, where the network knows something.
    """

    model: Any
    calibration: Any = None
    inputs: Any = None
    labels: Any = None

    def seen(self) -> Any:
        """Give samples for calibration, as `kpipe.quantize` takes them."""
        from tests.models import samples

        inputs = samples(self.model, CALIBRATION, seed=1) if self.calibration is None else self.calibration
        return inputs if len(inputs) > 1 else inputs[0]

    def unseen(self) -> list[Any]:
        """Give samples for the comparison of a file with the float model."""
        from tests.models import samples

        return samples(self.model, SAMPLES, seed=2) if self.inputs is None else self.inputs


def one_thread() -> None:
    """Compute on one core."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def family(name: str) -> Subject:
    """Train one of keras.applications."""
    calibration, (inputs, labels) = families.seen(name, CALIBRATION), families.unseen(name)
    return Subject(families.trained(name), [calibration], [inputs], labels)


def seeded(make: Callable[[], Any]) -> Subject:
    """Build a network with the same random weights every time."""
    import keras

    keras.utils.set_random_seed(0)
    return Subject(make())


def slow_models() -> dict[str, Callable[[], Subject]]:
    """Give the networks of the slow part, by name."""
    from kpipe.models import gru, text_transformer

    transformer = partial(text_transformer, input_shape=(12,), vocabulary=50, width=16, heads=2, blocks=1)
    return {
        "text_transformer": partial(seeded, transformer),
        "gru": partial(seeded, partial(gru, input_shape=(6, 4), classes=3, units=8)),
        **{name: partial(seeded, make) for name, make in NETS.items()},
        **{name: partial(family, name) for name in families.STEPS},
    }


def quick_models() -> dict[str, Callable[[], Subject]]:
    """Give the networks of the tests, by name."""
    from tests.models import ZOO, build

    return {name: lambda name=name: Subject(build(name)) for name in ZOO}


def rounded(subject: Subject, precision: str) -> Any:
    """Quantize a network by a scheme; give a float one as it is."""
    import kpipe
    from kpipe.fake_quant import SCHEMES

    if precision not in SCHEMES:
        return subject.model
    if SCHEMES[precision].activations is None:
        return kpipe.quantize(subject.model, precision)
    return kpipe.quantize(subject.model, precision, calibration=subject.seen())


def grouped(reasons: Mapping[str, str]) -> str:
    """List layers by the reason that they share.

    Example:
        >>> grouped({"a": "too long", "b": "too wide", "c": "too long"})
        '`a`, `c`: too long; `b`: too wide'
    """
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(f"`{name}`")
    parts = []
    for reason, names in found.items():
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN + 1 else ""
        parts.append(", ".join(names[:NAMES_SHOWN] if more else names) + f"{more}: {reason}")
    return "; ".join(parts)


def notes_on(made: Any, precision: str) -> str:
    """Say what of a quantized model computes in float or has more bits than its scheme."""
    from kpipe.fake_quant import float_layers, is_quantized, wider_layers

    if not is_quantized(made):
        return ""
    lists = {"in float": float_layers(made), "weights of 8 bits": wider_layers(made)}
    return "; ".join(f"{what}: {grouped(reasons)}" for what, reasons in lists.items() if reasons)


def faults_of(path: Path, precision: str, alone: bool) -> list[str]:
    """Say what a written file is that it should not be.

    Args:
        path: The file.
        precision: What was asked for.
        alone: Whether no layer was named as computing in float.
    """
    from kpipe.export import inspect
    from kpipe.fake_quant import SCHEMES

    found, faults = inspect(path), []
    if found.precision != precision:
        faults.append(f"its precision is {found.precision}")
    if precision in SCHEMES and SCHEMES[precision].storage not in {dtype for dtype, _ in found.stored}:
        faults.append(f"no weights of {SCHEMES[precision].storage}")
    if alone and found.floats:
        faults.append(f"computes in float: {'; '.join(map(str, found.floats))}")
    return faults


def written(subject: Subject, made: Any, name: str, precision: str, folder: Path) -> dict[str, Any]:
    """Write one file, look into it and hold it against both models, and against the labels where there are any."""
    import kpipe
    from kpipe.export import FORMATS
    from kpipe.export.verify import predict, relative_error

    path, inputs = folder / f"model{FORMATS[name].suffix}", subject.unseen()
    agreement = kpipe.export(made, path, precision=precision, data=subject.inputs and inputs[0]).agreement
    with FORMATS[name].runtime(path) as runtime:
        answers = runtime.run(inputs)
    apart = max(relative_error(a, r) for a, r in zip(answers, predict(subject.model, inputs), strict=True))
    notes = notes_on(made, precision)
    faults = faults_of(path, precision, alone="in float" not in notes)
    if not apart < WRONG:
        faults.append(f"{apart:.0%} off the float model")
    values = {"steps": agreement and agreement.max_steps, "error": agreement and agreement.max_relative_error}
    if subject.labels is not None:
        values["accuracy"] = float(np.mean(answers[0].argmax(1) == subject.labels))
    state = {"state": "fault", "why": "; ".join(faults)} if faults else {"state": "works"}
    return {**state, **values, "from_float": apart, "notes": notes}


def cell(subject: Subject, name: str, precision: str, made: Any = None) -> dict[str, Any]:
    """Try one format and precision of a network.

    Args:
        subject: The network.
        name: The format's.
        precision: "float32" or a scheme.
        made: The model quantized by that scheme, or what quantizing it raised. None: it is quantized here.

    Returns:
        {"state": "works", ...}, {"state": "refused", "why"} or {"state": "fault", "why"}.
    """
    from kpipe.errors import KpipeError

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            made = rounded(subject, precision) if made is None else made
            if isinstance(made, Exception):
                raise made
            return written(subject, made, name, precision, Path(folder))
        except KpipeError as refusal:
            return {"state": "refused", "why": str(refusal).replace(f"{folder}/", "")}
        except Exception as fault:
            return {"state": "fault", "why": f"{type(fault).__name__}: {fault}".replace(f"{folder}/", "")[:500]}


def row(subject: Subject) -> dict[str, dict[str, Any]]:
    """Try every format and precision of a network; "format precision" -> cell."""
    from kpipe.export import FORMATS

    cells = {}
    for precision in precisions():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                made = rounded(subject, precision)
            except Exception as error:
                made = error
        for name in FORMATS:
            cells[f"{name} {precision}"] = cell(subject, name, precision, made)
    return cells


def kept() -> dict[str, dict[str, Any]]:
    """Read what was measured before, of networks that there still are, in their order."""
    return in_order(json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {})


def in_order(found: Mapping[str, Any]) -> dict[str, Any]:
    """Leave those networks that there are, in their order."""
    return {name: found[name] for name in (*quick_models(), *slow_models()) if name in found}


def keep(name: str, cells: dict[str, Any]) -> None:
    """Add a network's cells to what is kept, and write the page."""
    record = in_order({**kept(), name: cells})
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


def elsewhere(name: str) -> dict[str, Any]:
    """Try a network in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--here", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Measure, keep, write the page; give 1 when there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="the networks of the slow part that were not tried yet")
    parser.add_argument("--only", action="append", default=[], help="this network anew")
    parser.add_argument("--render", action="store_true", help="write the page anew from what is kept")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    quick, slow = quick_models(), slow_models()
    if options.here:
        print(json.dumps(row({**quick, **slow}[options.here]())))
        return 0
    wanted = options.only or ([name for name in slow if name not in kept()] if options.slow else list(quick))
    for name in [] if options.render else wanted:
        cells = row(quick[name]()) if name in quick else elsewhere(name)
        keep(name, cells)
        states = [one["state"] for one in cells.values()]
        print(f"{name:20} {', '.join(f'{states.count(s)} {s}' for s in sorted(set(states)))}", flush=True)
    PAGE.write_text(page(kept()), encoding="utf-8")
    return int(any(one["state"] == "fault" for cells in kept().values() for one in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
