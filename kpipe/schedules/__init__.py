"""Sparsity over the steps of training: step -> (update now, sparsity)."""

from kpipe.schedules.constant import ConstantSparsity
from kpipe.schedules.epochs import EpochSchedule, resolve
from kpipe.schedules.following import Shortfall, Training, last_due, shortfall
from kpipe.schedules.join import Join
from kpipe.schedules.ramps import CosineSparsity, LinearSparsity, OneCycleSparsity, PolynomialDecay
from kpipe.schedules.schedule import SCHEDULES, Schedule
from kpipe.schedules.spec import AnySchedule, arguments_of, schedule, schedules_of
from kpipe.schedules.stepped import IterativeSparsity, SteppedSparsity

__all__ = [
    "SCHEDULES",
    "AnySchedule",
    "ConstantSparsity",
    "CosineSparsity",
    "EpochSchedule",
    "IterativeSparsity",
    "Join",
    "LinearSparsity",
    "OneCycleSparsity",
    "PolynomialDecay",
    "Schedule",
    "Shortfall",
    "SteppedSparsity",
    "Training",
    "arguments_of",
    "last_due",
    "resolve",
    "schedule",
    "schedules_of",
    "shortfall",
]
