"""The types of the fields that several stages share; each is checked where a recipe is read."""

import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from kpipe.errors import KpipeError
from kpipe.export import FORMATS
from kpipe.export.formats import FLOAT, METHODS
from kpipe.fake_quant import SCHEMES, precisions
from kpipe.layers import KERNEL_ROLES
from kpipe.patterns import pattern_of, scope_of
from kpipe.pipeline.task import LOSSES
from kpipe.quantize.bits import check_bits
from kpipe.quantize.improve import IMPROVEMENTS
from kpipe.quantize.observers import observer_of
from kpipe.registry import nearest
from kpipe.saliency import CRITERIA, channel_criterion_of
from kpipe.schedules import schedule, schedules_of
from kpipe.structured.depth import CRITERIA as LAYER_CRITERIA
from kpipe.structured.regularisers import regularizer_of
from kpipe.structured.request import check_ratio
from kpipe.structured.scopes import check_scope
from kpipe.structured.scores import NORMALISATIONS, REDUCTIONS
from kpipe.structured.targets import TARGETS, check_target
from kpipe.unstructured.regrowth import regrowth_of
from kpipe.unstructured.rounds import fractions_of

OPTIMIZERS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "nadam": "Nadam",
    "adagrad": "Adagrad",
    "lion": "Lion",
}
"""Name in a recipe -> class of `keras.optimizers`."""


TRIED = 1000
"""Optimizer updates of a training, and of an epoch, with which a schedule is made for its checks alone."""

SCHEDULE = "a name with its arguments, such as {linear: {final_sparsity: 0.8}}"

PRECISIONS = (FLOAT, *precisions())


def _one_of(kind: str, known: Collection[str]) -> AfterValidator:
    """Check a name against what is known when the recipe is read, so that what a user registers counts too."""

    def check(name: str) -> str:
        if name not in known:
            raise KpipeError(f"unknown {kind} {name!r}. Known: {', '.join(known)}.{nearest(name, known)}")
        return name

    return AfterValidator(check)


def _taken_by(make: Callable[[Any], Any], what: type | tuple[type, ...], such: str) -> PlainValidator:
    """Check what a recipe says by making it, and keep it as it was said: plain data."""

    def check(spec: Any) -> Any:
        if not isinstance(spec, what):
            raise KpipeError(f"received {spec!r}; expected {such}")
        make(spec)
        return spec

    return PlainValidator(check)


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise KpipeError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


def _several(roles: tuple[str, ...]) -> tuple[str, ...]:
    if not roles:
        raise KpipeError(f"received no role; expected one or more of {', '.join(KERNEL_ROLES)}")
    return roles


Epochs = Annotated[int, Field(ge=0, le=100_000)]
TrainingEpochs = Annotated[int, Field(ge=1, le=100_000)]
BatchSize = Annotated[int, Field(ge=1)]
Multiple = Annotated[int, Field(ge=1)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Remaining = Annotated[float, Field(gt=0, lt=1)]
CriterionName = Annotated[str, _one_of("criterion", CRITERIA)]
LayerCriterionName = Annotated[str, _one_of("criterion", LAYER_CRITERIA)]
LossName = Annotated[str, _one_of("loss", ("auto", *LOSSES))]
FormatName = Annotated[str, _one_of("format", FORMATS)]
SchemeName = Annotated[str, _one_of("scheme", SCHEMES)]
ImprovementName = Annotated[str, _one_of("improvement", IMPROVEMENTS)]
ObserverSpec = Annotated[
    str | dict[str, Any], _taken_by(observer_of, (str, dict), "a name, or {name: {argument: value}}")
]
PrecisionName = Annotated[str, _one_of("precision", PRECISIONS)]
MethodName = Annotated[str, _one_of("method", METHODS)]
Roles = Annotated[tuple[Annotated[str, _one_of("role", KERNEL_ROLES)], ...], AfterValidator(_several)]
ScheduleSpec = Annotated[dict[str, Any], _taken_by(lambda spec: schedule(spec, TRIED), dict, SCHEDULE)]
SchedulesSpec = Annotated[dict[str, Any], _taken_by(lambda spec: schedules_of(spec, TRIED), dict, SCHEDULE)]
PatternName = Annotated[str, _taken_by(pattern_of, (str, int), "text, such as '2:4'")]
ScopeSpec = Annotated[str | dict[str, Any], _taken_by(scope_of, (str, dict), "text, such as 'global', or a mapping")]
RegrowthSpec = Annotated[str | dict[str, Any], _taken_by(regrowth_of, (str, dict), "'rigl', 'set' or a mapping")]
PerRound = Annotated[float | dict[str, float], _taken_by(fractions_of, (int, float, dict), "a fraction, such as 0.2")]
RegularizerSpec = Annotated[
    str | dict[str, Any], _taken_by(regularizer_of, (str, dict), "a name, or {name: {argument: value}}")
]
ChannelScope = Annotated[
    str | dict[str, Any],
    _taken_by(check_scope, (str, dict), "text, such as 'global', or names with patterns"),
]
HeadScope = Annotated[str, _one_of("scope", ("layer", "global"))]
Ratios = Annotated[float | dict[str, float], _taken_by(check_ratio, (int, float, dict), "a fraction, such as 0.5")]
Reduction = Annotated[str, _one_of("reduction", REDUCTIONS)]
Normalisation = Annotated[str, _one_of("normalisation", NORMALISATIONS)]
ChannelCriterionName = Annotated[str, _taken_by(channel_criterion_of, str, "a criterion's name")]
BitsSpec = Annotated[
    dict[str, int | None], _taken_by(check_bits, dict, "patterns with 4, 8 or null, such as {logits: 8}")
]
Expression = Annotated[str, AfterValidator(_expression)]
Expressions = Annotated[
    tuple[Expression, ...], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]
"""Several expressions; one may stand without a list around it."""


class Optimizer(BaseModel):
    """Choose an optimizer.

    Args:
        name: A name of `OPTIMIZERS`.
        learning_rate: The rate at the start.
        decay: "cosine" lets the rate fall to zero over the stage's training, "none" keeps it.
        weight_decay: Fraction of a weight that is taken off a step, times the rate; None for the optimizer's default.
        momentum: Of sgd and rmsprop, in [0, 1); that of sgd is Nesterov's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, _one_of("optimizer", OPTIMIZERS)] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Literal["none", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _knows_momentum(self) -> Self:
        if self.momentum is not None and self.name not in ("sgd", "rmsprop"):
            raise KpipeError(f"momentum is for sgd and rmsprop; {self.name} has none to set. Leave it out")
        return self


class Augmentation(BaseModel):
    """Vary images anew in every epoch of a training.

    Args:
        flip: Mirror left to right, or not, with equal chance.
        shift: Move by up to so many pixels along both axes; what comes in is zero.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = False
    shift: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _varies_something(self) -> Self:
        if not self.flip and not self.shift:
            raise KpipeError("augment changes nothing; give flip: true or a shift in pixels, or leave it out")
        return self


class Teaching(BaseModel):
    """Let another model teach while a stage trains.

    Args:
        temperature: Softens both answers before they are compared.
        alpha: Share of the labels in the loss, in [0, 1]; the rest is the teacher's.
        teacher: "baseline", the model that everything is compared with, or "input", the model as the stage before left
            it.
        features: Patterns of the names of layers whose outputs are compared too. Of a layer that has lost channels,
            those that it has are compared with the same ones of the teacher; where it is not known which these are, a
            learned linear map of them is.
        feature_weight: Of the features, beside the teacher's answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(gt=0)] = 3.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    teacher: Literal["baseline", "input"] = "baseline"
    features: Expressions = ()
    feature_weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _has_a_say(self) -> Self:
        if not self.features and self.feature_weight != 1.0:
            raise KpipeError("feature_weight weighs features, and there are none; name some, or leave it out")
        if self.features and self.alpha == 1:
            raise KpipeError("alpha is 1, so the teacher has no say and features would do nothing; give a lower alpha")
        return self


class Until(BaseModel):
    """Say when rounds of cutting and training are to end.

    Args:
        max_accuracy_drop: The most that the accuracy on the validation data may lie below that of the baseline, in
            [0, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)]


class Target(BaseModel):
    """Say how much of the model may remain, by one of its costs.

    Args:
        macs: Fraction of the MACs, in (0, 1).
        params: Fraction of the parameters, in (0, 1).
        bytes: Of the exported int8 file: a fraction in (0, 1), or bytes. What a delivery makes it say of itself, such
            as labels, comes on top.
        latency_ms: Milliseconds for one sample in LiteRT on this machine, float32, one thread.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: Remaining | None = None
    params: Remaining | None = None
    bytes: Annotated[float, Field(gt=0)] | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None

    @property
    def one(self) -> tuple[str, float]:
        """The name and the amount."""
        return check_target(self.model_dump(exclude_none=True))

    @property
    def is_fraction(self) -> bool:
        """Whether it is a fraction of what the model costs, and not an amount."""
        kind, amount = self.one
        value = TARGETS[kind].value
        return value == "fraction" or (value == "either" and amount < 1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise KpipeError(f"give exactly one of {', '.join(type(self).model_fields)}, such as {{macs: 0.5}}")
        check_target(self.model_dump(exclude_none=True))
        return self
