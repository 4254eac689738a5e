"""How near the outputs of a file must be to those of the model that it is held against."""

import math

from kpipe.errors import ExportError
from kpipe.export.file import Agreement

RELATIVE_TOLERANCE = {"float16": 1e-2}
"""Greatest max|a - b| / max|b| of a float file that is not computed as exactly as float32. float16 weights have 11
significant bits, 5e-4; layers add up."""
EXACT = 1e-4
"""That of files which compute in float32, be their weights stored as whole numbers or not."""
HYBRID = 0.02
"""That of one operation which takes floats and rounds them to 8 bits as it runs; the errors of n of them add up to √n.

With a step of r / 255 for what spans r, the error of an entry is that of a uniform draw, r / (255 √12). Sums of
products carry it on in the proportion in which it stands to the entries' root mean square: 0.9 % where r is 8 times
that, as in normal values, 2 % where it is 17 times that, as behind a ReLU that few values pass.
"""
WITHIN_TWO_STEPS, MOST_STEPS, ARGMAX_AGREEMENT = 0.97, 6.0, 0.99
"""What a file in whole numbers must reach: fraction within two steps, greatest difference in steps, fraction of equal
argmax."""
COARSE = {"w4a8": (0.9, 8.0)}
"""The first two of files with weights of 4 bits. LiteRT rounds twice in such convolutions, to a 2ⁿth part of a
step and then to a step, which brings one value in 2ⁿ⁺¹ to the next one; n is 5 where a step of the output is 32 of the
products. A MobileNet's first layer gave 1.4 % of its values so, and onnxruntime none."""
SIGNAL_TO_NOISE, FLOAT_ARGMAX = 20.0, 0.9
"""What a file in whole numbers must reach where no model computes as it does, and a float one is all there is: decibels
by which its error lies below the scatter of the outputs, and the fraction of equal argmax.

20 dB are an error of a tenth of the scatter. Two convolutional nets trained on digits reached 34 and 38 dB with int8,
36 and 44 with int16x8 on samples that their converter had not seen; ranges half of what they had to be left 4 and 10
dB, a quarter 0 and 2. Untrained nets with biases as great as their kernels answer nearly the same to every noise that
they are fed, so that 8 bits of weights left some with less than 20. Of 10 normal outputs with an error of a tenth,
one row in 12 has its argmax elsewhere."""


def check(agreement: Agreement, precision: str, what: str, hybrids: int = 0) -> None:
    """Raise an `ExportError` when a file agrees less than its precision must.

    Args:
        agreement: What was measured.
        precision: The file's.
        what: What the message is to call it.
        hybrids: How many of its operations round what comes in as they run.
    """
    faults, argmax, least_argmax = [], agreement.argmax_agreement, 0.0
    if agreement.signal_to_noise_db is not None:
        least_argmax = FLOAT_ARGMAX
        if not agreement.signal_to_noise_db >= SIGNAL_TO_NOISE:
            found = lies(agreement.signal_to_noise_db)
            why = "was the calibration like these samples, and does no constant, such as a mask, stretch a range?"
            faults.append(f"{found}, at least {SIGNAL_TO_NOISE:g} dB it must ({why})")
    elif agreement.max_steps is None or agreement.within_two_steps is None:
        tolerance = max(RELATIVE_TOLERANCE.get(precision, EXACT), HYBRID * hybrids**0.5)
        if not agreement.max_relative_error <= tolerance:
            faults.append(f"relative error {agreement.max_relative_error:.2g}, at most {tolerance:g} is allowed")
    else:
        least_argmax = ARGMAX_AGREEMENT
        within, most = COARSE.get(precision, (WITHIN_TWO_STEPS, MOST_STEPS))
        if agreement.within_two_steps < within:
            found = f"{agreement.within_two_steps:.1%} of the values lie within 2 steps"
            faults.append(f"{found}, at least {within:.0%} must")
        if not agreement.max_steps <= most * (1 + EXACT):
            faults.append(f"a value is {agreement.max_steps:.1f} steps off, at most {most:g} are allowed")
    if agreement.source == "data" and argmax is not None and argmax < least_argmax:
        faults.append(f"the argmax agrees on {argmax:.1%} of the rows, at least {least_argmax:.0%} must")
    if faults:
        raise ExportError(
            f"{what} ({precision}) does not agree with the Keras model on {agreement.samples} samples "
            f"({agreement.source}): {'; '.join(faults)}."
        )


def lies(decibels: float) -> str:
    """Say where an error lies.

    Args:
        decibels: Signal to noise, below what a file must reach.

    Example:
        >>> lies(-3.0)
        'its error lies 3.0 dB above the scatter of an output'
        >>> lies(float("-inf"))
        'an output of the file is not finite, or one of the model does not vary over the samples'
    """
    if not math.isfinite(decibels):
        return "an output of the file is not finite, or one of the model does not vary over the samples"
    side = "below" if decibels >= 0 else "above"
    return f"its error lies {abs(decibels):.1f} dB {side} the scatter of an output"
