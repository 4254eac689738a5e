"""Figures as text: every number that a person reads in a report or on the command line is written here."""

import math
from collections.abc import Callable

DASH = "–"
Number = float | int | None


def _shown(write: Callable[[float], str]) -> Callable[[Number], str]:
    """Write a dash for a missing figure, `NaN` or `∞` for one that is no number, and minus signs as signs."""

    def shown(value: Number) -> str:
        if value is None or isinstance(value, bool):
            return DASH
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return write(value).replace("-", "−")

    shown.__doc__, shown.__name__, shown.__module__ = write.__doc__, write.__name__, write.__module__
    return shown


def significant(value: float, digits: int = 3) -> str:
    """Write a number with this many significant digits, never in powers of ten.

    Example:
        >>> significant(0.012345), significant(1.5), significant(12.34), significant(1234.5)
        ('0.0123', '1.50', '12.3', '1,234')
        >>> significant(9.999), significant(0.0)
        ('10.0', '0')
    """
    if not value:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded if decimals else value:,.{decimals}f}"


@_shown
def count(value: float) -> str:
    """Write a whole number with its thousands apart.

    Example:
        >>> count(1234567), count(None)
        ('1,234,567', '–')
    """
    return f"{value:,.0f}"


@_shown
def scaled(value: float) -> str:
    """Write a large count (MACs, parameters) in thousands, millions or thousands of millions.

    Example:
        >>> scaled(950), scaled(12_345), scaled(1_234_567), scaled(2.5e9)
        ('950', '12.3 k', '1.23 M', '2.50 G')
        >>> scaled(999_999)
        '1.00 M'
    """
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return significant(value / size) + letter
    return count(value)


@_shown
def kilobytes(value: float) -> str:
    """Write bytes in KB of 1000 bytes.

    Example:
        >>> kilobytes(48_264), kilobytes(612), kilobytes(2_415_900), kilobytes(None)
        ('48.3', '0.612', '2,416', '–')
    """
    return significant(value / 1000)


@_shown
def milliseconds(value: float) -> str:
    """Write milliseconds with three significant digits.

    Example:
        >>> milliseconds(0.01234), milliseconds(12.0)
        ('0.0123', '12.0')
    """
    return significant(value)


@_shown
def seconds(value: float) -> str:
    """Write a duration in seconds.

    Example:
        >>> seconds(12.34), seconds(0.04), seconds(754.0)
        ('12.3', '0.0', '754')
    """
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


@_shown
def percent(value: float) -> str:
    """Write a fraction as a percentage.

    Example:
        >>> percent(0.97777), percent(1.0)
        ('97.78 %', '100.00 %')
    """
    return f"{100 * value:.2f} %"


@_shown
def share(value: float) -> str:
    """Write a fraction as a rounded percentage, for parts of a whole.

    Example:
        >>> share(0.5987), share(0.0), share(0.0004)
        ('59.9 %', '0 %', '0.04 %')
    """
    return "0 %" if not value else f"{100 * value:.1f} %" if abs(value) >= 0.001 else f"{100 * value:.2f} %"


@_shown
def points(value: float) -> str:
    """Write a difference of two fractions in percentage points.

    Example:
        >>> points(0.00278), points(-0.01), points(0.0)
        ('0.28', '−1.00', '0.00')
    """
    written = f"{100 * value:.2f}"
    return "0.00" if written == "-0.00" else written


@_shown
def times(value: float) -> str:
    """Write a ratio.

    Example:
        >>> times(12.34), times(0.5), times(None)
        ('12.3×', '0.500×', '–')
    """
    return significant(value) + "×"


def either_way(ratio: float, better: str, worse: str) -> str:
    """Write a ratio so that it reads as what it is: 2.00× slower, not 0.500× faster.

    Example:
        >>> either_way(2.0, "faster", "slower"), either_way(0.5, "faster", "slower")
        ('2.00× faster', '2.00× slower')
        >>> either_way(1.001, "smaller", "bigger")
        'not smaller'
    """
    written = times(max(ratio, 1 / ratio))
    return f"not {better}" if written == times(1.0) else f"{written} {better if ratio > 1 else worse}"


@_shown
def plain(value: float) -> str:
    """Write a number whose unit is not known: whole as it is, else with three significant digits.

    Example:
        >>> plain(3), plain(0.0012345), plain(2.5), plain(2.04e-7)
        ('3', '0.00123', '2.50', '2.0e−07')
    """
    if 0 < abs(value) < 1e-4:
        return f"{value:.1e}"
    return count(value) if float(value).is_integer() else significant(value)
