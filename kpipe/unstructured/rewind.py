"""Find a lottery ticket: rounds of training, pruning, and rewinding what is left to where it began."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns import MaskFunction, Pattern, check_scope, pattern_of, scope_of
from kpipe.projections import first_mask, trained_model
from kpipe.saliency import Criterion, criterion_of
from kpipe.targets import PRUNED_ROLES, LayerFilter, find_targets
from kpipe.unstructured.rounds import Judging, PerRound, ScopeChoice, choose, count_rounds, note_gone, share_out
from kpipe.unstructured.suited import suited
from kpipe.unstructured.ticket import Round, Ticket

Train = Callable[[keras.Model, list[keras.callbacks.Callback]], Any]
"""(model, callbacks) -> the curves: what `fit` returned, a mapping, or None. Trains the model in place."""


def find_ticket(
    model: keras.Model,
    train: Train,
    rounds: int | None = None,
    sparsity: float | None = None,
    per_round: PerRound = 0.2,
    rewind_to: int = 0,
    *,
    criterion: str | Criterion = "magnitude",
    pattern: str | Pattern | MaskFunction = "unstructured",
    scope: ScopeChoice = "layer",
    layers: LayerFilter = None,
    roles: Sequence[str] = PRUNED_ROLES,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> Ticket:
    """Train, prune and rewind a network again and again: what is left is a sparse network that trains well.

    Each round trains a copy of the model from the same beginning, under the masks found so far, prunes the trained
    weights, and rewinds: the survivors get back the values that they began with. Only the masks go from one round to
    the next; the optimizer is a new one each time.

    Args:
        model: A built model; its weights as they are now are the beginning. It stays as it is. When it is compiled, the
            copies that `train` is given are compiled alike; else `train` compiles them.
        train: Trains the model it is given in place, with the callbacks it is given, such as
            `lambda model, callbacks: model.fit(x, y, callbacks=callbacks)`. The curves it returns go into the history.
        rounds: How many times to train and prune; give this or `sparsity`.
        sparsity: Fraction of zeros at the end, in (0, 1): as many rounds as it takes until each weight has it.
        per_round: Fraction of what is left that a round prunes. A mapping {regular expression: fraction} gives each
            weight the fraction of the first expression found in its path, and leaves alone what none is found in.
        rewind_to: The number of updates, in the first round, after which the weights are those to rewind to; 0 is the
            very beginning.
        criterion: A registered name, or a function of `Evidence`; it judges the trained weights.
        pattern: Which entries go together, as in `prune_weights`; weights that cannot have it are left alone.
        scope: How the fraction is shared out, as in `prune_weights`; weights of different fractions never share.
        layers: None for every layer that kpipe knows, a regular expression searched in the weight's path, a layer class
            or a tuple of them, or a function of the layer.
        roles: What a weight has to be, as in `prune_weights`.
        data: Data for a criterion that needs some, gone through in every round.
        loss: Loss for those; None: the one that the trained copy is compiled with.
        seed: Of a criterion that draws random numbers.

    Returns:
        The ticket: the masks, the rewound model, and the history of the rounds. What it holds has not been trained.

    Raises:
        KpipeError: For arguments that do not fit, and a training that changes nothing or ends before `rewind_to`.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="d")])
        >>> net.compile("sgd", "mse")
        >>> x, y = np.ones((8, 4)), np.ones((8, 5))
        >>> ticket = find_ticket(net, lambda model, told: model.fit(x, y, callbacks=told, verbose=0), rounds=2)
        >>> round(ticket.kept, 2), [round(one.kept, 2) for one in ticket.history]
        (0.65, [1.0, 0.8])

    References:
        Frankle and Carbin, The lottery ticket hypothesis (2019), https://arxiv.org/abs/1803.03635
        Frankle, Dziugaite, Roy and Carbin, Linear mode connectivity and the lottery ticket hypothesis (2020), on
        rewinding to a later step, https://arxiv.org/abs/1912.05671
    """
    if not isinstance(rewind_to, int) or rewind_to < 0:
        raise KpipeError(f"rewind_to is {rewind_to!r}; expected a number of updates, 0 for the very beginning.")
    check_choice(criterion, pattern, scope)
    judging = Judging(criterion, pattern, scope, data, loss, seed)
    found, skipped = find_targets(model, layers, roles)
    chosen = choose(model, suited(found, pattern_of(pattern))[0], skipped, per_round)
    last = count_rounds(chosen, rounds, sparsity)
    check_scope(scope, pattern, max(one.sparsity(last, sparsity) for one in chosen.values()))
    dropped = {path: np.where(first_mask(one.weight), 0, -1).astype("int16") for path, one in chosen.items()}
    places = {path: one.place for path, one in chosen.items()}
    ticket = Ticket(model, tuple(model.get_weights()), dropped, places, ()).renewed()
    for number in range(1, last + 1):
        twin = _compiled_alike(ticket.rewound(), model)
        early = _Snapshot(rewind_to if number == 1 else 0)
        logs = _trained(twin, train, ticket, early)
        groups = share_out(chosen, number, sparsity, scope_of(scope).alone)
        dropped = note_gone(ticket.dropped, judging.keeps(twin, chosen, groups, number), number)
        past = (*ticket.history, Round(number, ticket.kept, logs))
        ticket = replace(ticket, start=early.weights or ticket.start, dropped=dropped, history=past)
    return ticket.renewed()


def check_choice(criterion: str | Criterion, pattern: str | Pattern | MaskFunction, scope: ScopeChoice) -> None:
    """Refuse what cannot prune between two trainings, before anything trains.

    Raises:
        KpipeError: When a name is not known, a scope does not go with the pattern, or the criterion follows the weights
            through a training of its own.

    Example:
        >>> check_choice("movement", "unstructured", "layer")
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The criterion 'movement' follows the weights through a training; choose another one.
    """
    check_scope(scope, pattern)
    if "movement" in criterion_of(criterion)[1]["needs"]:
        raise KpipeError(f"The criterion {criterion!r} follows the weights through a training; choose another one.")


def _trained(model: keras.Model, train: Train, ticket: Ticket, early: "_Snapshot") -> dict[str, list[float]]:
    """Train under the ticket's masks; give the curves as plain data."""
    before = model.get_weights()
    with ticket.hold(model):
        found = train(model, [early])
    if all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True)):
        raise KpipeError("train left every weight as it was. It must train the very model that it is given, in place.")
    early.check()
    curves = found.history if isinstance(found, keras.callbacks.History) else found
    if curves is None:
        return {}
    if not isinstance(curves, Mapping):
        raise KpipeError(f"train returned {type(found).__name__}; expected what model.fit returns, a mapping, or None.")
    return {str(name): [float(value) for value in np.ravel(values)] for name, values in curves.items()}


def _compiled_alike(twin: keras.Model, model: keras.Model) -> keras.Model:
    """Compile a copy as the model is compiled, with an optimizer of its own; leave it when the model is not."""
    if model.compiled:
        try:
            twin.compile_from_config(model.get_compile_config())
        except (TypeError, ValueError) as error:
            raise KpipeError(
                f"The copies of {model.name!r} cannot be compiled as it is: {error} Compile them in `train`, and give "
                "find_ticket a model that is not compiled."
            ) from error
    return twin


class _Snapshot(keras.callbacks.Callback):
    """Keep the weights as they are after a number of updates; 0 keeps none."""

    def __init__(self, step: int):
        super().__init__()
        self.step, self.seen = step, 0
        self.weights: tuple[np.ndarray, ...] | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look whether the step has come."""
        if self.step and self.model is not None:
            self.seen = int(self.model.optimizer.iterations.numpy())
            if self.seen == self.step:
                self.weights = tuple(trained_model(self.model).get_weights())

    def check(self) -> None:
        """Raise when the step never came."""
        if self.step and self.weights is None:
            why = "train did not use its callbacks" if self.seen == 0 else f"it ended after update {self.seen}"
            if self.seen > self.step:
                why = "it was passed over: it is no multiple of steps_per_execution"
            raise KpipeError(f"The first round never stood at rewind_to={self.step}: {why}.")
