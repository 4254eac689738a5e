import warnings

import pytest

from kpipe.errors import NoEffectWarning
from kpipe.pipeline.ledger import Record, noting


def test_what_a_step_warns_its_user_of_is_noted_and_goes_on():
    record = Record()
    with pytest.warns(DeprecationWarning), pytest.warns(UserWarning) as heard, noting(record):
        warnings.warn("the run ended before the schedule", UserWarning, stacklevel=1)
        warnings.warn("nothing was pruned", NoEffectWarning, stacklevel=1)
        warnings.warn("nothing was pruned", NoEffectWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert record.notes == ["the run ended before the schedule", "nothing was pruned"]
    assert {str(warning.message) for warning in heard} == {*record.notes, "old"}


def test_warnings_are_not_lost_when_the_block_raises():
    record = Record()
    with pytest.warns(NoEffectWarning, match="nothing"), pytest.raises(RuntimeError, match="stop"), noting(record):
        warnings.warn("nothing was pruned", NoEffectWarning, stacklevel=1)
        raise RuntimeError("stop")
    assert record.notes == ["nothing was pruned"]
