"""A lottery ticket: which weights survived, what they began with, and how the rounds went."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.atomic import replace_atomically
from kpipe.copies import copy_model, make_like, pairs, take_weights
from kpipe.errors import KpipeError
from kpipe.projections import Holder, Mask, trained_model


@dataclass(frozen=True)
class Round:
    """Tell of one round: its number from 1, the fraction of weights that it trained, and the curves of its training."""

    number: int
    kept: float
    logs: Mapping[str, list[float]]


@dataclass(frozen=True, eq=False)
class Ticket:
    """Hold what `find_ticket` found.

    Args:
        model: The rewound network, not compiled. Train it inside `hold`, and its zeros stay zero.
        start: The weights that it is rewound to, before the masks, in the order of `model.get_weights()`.
        dropped: Path -> for each entry the round that dropped it; 0 where it survived, -1 where it was zero before.
        places: Path -> its index in `model.weights`.
        history: A `Round` each.

    Example:
        >>> net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False, name="d")])
        >>> start = (np.array([[1.0], [2.0], [3.0]]),)
        >>> rounds = (Round(1, 1.0, {}), Round(2, 0.67, {}))
        >>> ticket = Ticket(net, start, {"d/kernel": np.array([[2], [0], [1]])}, {"d/kernel": 0}, rounds)
        >>> ticket.rewound().get_weights()[0].ravel().tolist()
        [0.0, 2.0, 0.0]
        >>> round(ticket.kept, 2), round(ticket.after(1).kept, 2)
        (0.33, 0.67)
    """

    model: keras.Model
    start: tuple[np.ndarray, ...]
    dropped: Mapping[str, np.ndarray]
    places: Mapping[str, int]
    history: tuple[Round, ...]

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Give path -> keep-mask."""
        return {path: gone == 0 for path, gone in self.dropped.items()}

    @property
    def kept(self) -> float:
        """Give the fraction that survived of the weights that may be pruned."""
        return sum(int(mask.sum()) for mask in self.masks.values()) / sum(gone.size for gone in self.dropped.values())

    def after(self, rounds: int) -> "Ticket":
        """Give the ticket as it was after so many rounds; after 0 it is the network before any pruning."""
        if not 0 <= rounds <= len(self.history):
            raise KpipeError(
                f"Received rounds={rounds!r}; expected 0 to {len(self.history)}, the rounds of this ticket."
            )
        dropped = {path: np.where(gone > rounds, 0, gone).astype(gone.dtype) for path, gone in self.dropped.items()}
        return replace(self, dropped=dropped, history=self.history[:rounds]).renewed()

    def hold(self, model: keras.Model | None = None) -> Holder:
        """Hold the zeros while a model trains, until `release`; use it in a `with` statement.

        Args:
            model: The model to be fit: of the ticket's architecture, or a `keras.distillation.Distiller` around one.
                None for the ticket's own.
        """
        model = self.model if model is None else model
        holder = Holder(model)
        for variable, mask in self._masked(trained_model(model)):
            holder.hold(variable, Mask(mask))
        return holder

    def rewound(self) -> keras.Model:
        """Make the ticket's network anew: the weights that it is rewound to, times the masks."""
        self._masked(self.model)  # of this architecture?
        twin = copy_model(self.model)
        twin.set_weights(self.start)
        return self._mask(twin)

    def renewed(self) -> "Ticket":
        """Give the same ticket with a network that has not been trained."""
        return replace(self, model=self.rewound())

    def reinitialised(self, seed: int = 0) -> keras.Model:
        """Make a network of the same masks with weights drawn anew by each layer's initializers: the control.

        Raises:
            KpipeError: When a layer begins with the same weights whatever the seed.
        """
        twin = draw_anew(self.model, seed)
        for (variable, mask), (began, _) in zip(self._masked(twin), self._masked(self.rewound()), strict=True):
            if mask.any() and np.array_equal(variable.numpy()[mask], began.numpy()[mask]):
                raise KpipeError(f"{variable.path} begins with the same weights again; give its layer an initializer.")
        return self._mask(twin)

    def save(self, path: str | Path) -> None:
        """Write masks, weights and history into an `.npz` file; the architecture is not in it."""
        arrays: dict[str, Any] = {f"start/{index}": array for index, array in enumerate(self.start)}
        arrays |= {f"dropped/{path}": gone for path, gone in self.dropped.items()}
        facts = np.array(json.dumps({"places": self.places, "history": [asdict(one) for one in self.history]}))
        with replace_atomically(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays, facts=facts)

    @classmethod
    def load(cls, path: str | Path, model: keras.Model) -> "Ticket":
        """Read what `save` wrote.

        Args:
            path: The `.npz` file.
            model: A built model of the same architecture and layer names; it stays as it is.
        """
        with np.load(path) as file:
            facts = json.loads(file["facts"].item())
            start = tuple(file[f"start/{index}"] for index in range(sum(name.startswith("start/") for name in file)))
            dropped = {name: file[f"dropped/{name}"] for name in facts["places"]}
        return cls(model, start, dropped, facts["places"], tuple(Round(**one) for one in facts["history"])).renewed()

    def _masked(self, model: keras.Model) -> list[tuple[keras.Variable, np.ndarray]]:
        """Pair the model's variables with their keep-masks; a copy may have other paths, but it has the same order."""
        shapes = [tuple(weight.shape) for weight in model.weights]
        if shapes != [array.shape for array in self.start]:
            raise KpipeError(
                f"The model {model.name!r} is not of the ticket's architecture: its weights have the shapes {shapes}, "
                f"the ticket's {[array.shape for array in self.start]}."
            )
        return [(model.weights[self.places[path]], mask) for path, mask in self.masks.items()]

    def _mask(self, model: keras.Model) -> keras.Model:
        for variable, mask in self._masked(model):
            variable.assign(np.where(mask, variable.numpy(), 0))
        return model


def draw_anew(model: keras.Model, seed: int = 0) -> keras.Model:
    """Make a model of the same architecture whose layers draw their weights anew.

    What is frozen, and what was adapted to data, as a `Normalization` is, stays as it is.

    Args:
        model: A built model; one of a class of its own needs a `get_config` that holds its layers.
        seed: Of the initializers, whatever seeds of their own they had.

    Returns:
        A new model, not compiled.

    Example:
        >>> net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
        >>> one, same, other = (draw_anew(net, seed).get_weights()[0] for seed in (1, 1, 2))
        >>> bool((one == same).all()), bool((one == other).any())
        (True, False)
    """
    twin = make_like(model, lambda config: _seeded(config, np.random.default_rng(seed)))
    for new, old in pairs(twin, model):
        if not old.trainable or callable(getattr(old, "finalize_state", None)):
            take_weights(new, old)
        for variable, other in zip(new._trainable_variables, old._trainable_variables, strict=True):
            if not other.trainable:
                variable.assign(other)
    return twin


def _seeded(config: Any, rng: np.random.Generator) -> Any:
    """Give every initializer in a config another seed.

    Example:
        >>> config = {"kernel_initializer": {"class_name": "HeNormal", "config": {"seed": None}}, "seed": 3}
        >>> seeded = _seeded(config, np.random.default_rng(0))
        >>> seeded["kernel_initializer"]["config"]["seed"] is None, seeded["seed"]
        (False, 3)
    """
    if isinstance(config, list | tuple):
        return type(config)(_seeded(item, rng) for item in config)
    if not isinstance(config, Mapping):
        return config
    fresh = {name: _seeded(item, rng) for name, item in config.items()}
    for name, item in fresh.items():
        if name.endswith("initializer") and isinstance(item, dict) and "seed" in item.get("config", {}):
            item["config"]["seed"] = int(rng.integers(1, 2**31))
    return fresh
