"""Numbers as people write them: thousands, currency, units, percent, fractions, mixed numbers, powers of ten.

Values are exact rationals. Two are equal when they are the same; where one of them is written as a decimal, also when
they differ by the noise of floating point, or when a decimal of four or more digits is the other one rounded. Units
are left out of account: the number is judged.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

FLOAT_NOISE = Fraction(1, 10**9)
"""Relative difference that is no difference where a decimal is concerned."""
LEAST_ROUNDED = 4
"""Significant digits from which a decimal may stand for the number that it is a rounding of."""
LARGEST_EXPONENT = 400

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?! ?\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_POWER = r"(?:\s*(?:\*|x)\s*10\s*(?:\^|\*\*)\s*[({]?\s*(?P<power>[-+]?\d+)\s*[)}]?|[eE](?P<exponent>[-+]?\d+))"
_RATIO = rf"\(?\s*(?P<above>-?{_DECIMAL})\s*\)?\s*/\s*\(?\s*(?P<below>-?{_DECIMAL})\s*\)?"
_CURRENCY = r"(?:[$€£¥₹]|Rs\.?|USD|US\$|EUR)"
_GLUED = r"(?:st|nd|rd|th|cm|mm|km|kg|mg|ml|mph|kmph|ft|lbs?|oz|hrs?|mins?|secs?)"
_NO_UNIT = r"(?!(?:and|or|to|plus|minus|times|over|pi|sqrt|sin|cos|tan|log|ln|mod|am|pm)\b)"
_WORD = rf"{_NO_UNIT}(?:[A-Za-z'\u2019]{{2,}}\.?|[mgshlLaI])"
_UNIT = rf"{_WORD}(?:\^?[23])?"
_UNITS = rf"(?:(?:{_GLUED}\b|(?:^|(?<=[\s%\d)]))\s*{_UNIT})(?:(?:\s*/\s*|[\s,-]+){_UNIT})*)"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_QUANTITY = re.compile(
    rf"(?:{_WORD}[,:]?\s+)*(?P<sign>[-+]?)\s*{_CURRENCY}?\s*(?P<inner>[-+]?)\s*"
    rf"(?:(?:(?P<whole>\d+)\s+(?=\(?\d))?{_RATIO}|(?P<decimal>{_DECIMAL}){_POWER}?)"
    rf"\s*(?P<percent>%|percent\b|per cent\b)?(?:\s*(?P<scale>{'|'.join(_SCALES)})\b)?"
    rf"\s*(?:{_CURRENCY})?\s*(?:{_UNITS})?\s*[.!]?"
)
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Quantity:
    """A number as it was written.

    Attributes:
        last_place: what one unit of the last written digit is worth; None of a whole number or a fraction.
        digits: significant digits of a decimal.
    """

    value: Fraction
    last_place: Fraction | None = None
    digits: int = 0
    is_percent: bool = False

    def equals(self, other: "Quantity") -> bool:
        """Return whether two numbers are the same; `25%` is 25 and a quarter, as the other side has it."""
        if self.is_percent == other.is_percent:
            return self._is_near(other)
        percent, number = (self, other) if self.is_percent else (other, self)
        return percent._is_near(number) or percent._hundredth()._is_near(number)

    def _hundredth(self) -> "Quantity":
        place = None if self.last_place is None else self.last_place / 100
        return Quantity(self.value / 100, place, self.digits)

    def _is_near(self, other: "Quantity") -> bool:
        difference = abs(self.value - other.value)
        if self.last_place is None and other.last_place is None:
            return not difference
        return difference <= FLOAT_NOISE * max(abs(self.value), abs(other.value)) or any(
            decimal.last_place is not None and decimal.digits >= LEAST_ROUNDED and difference <= decimal.last_place / 2
            for decimal in (self, other)
        )


def quantity_of(text: str) -> Quantity | None:
    """Read plain text that holds one number and otherwise words; None where it is anything else."""
    if text.strip(" .").casefold() in _WORDS:
        return Quantity(Fraction(_WORDS.index(text.strip(" .").casefold())))
    found = _QUANTITY.fullmatch(text)
    if found is None:
        return None
    sign = -1 if (found["sign"] + found["inner"]).count("-") == 1 else 1
    scale = sign * _SCALES.get(found["scale"] or "", 1)
    is_percent = found["percent"] is not None
    if found["decimal"] is None:
        below = _fraction(found["below"])
        if not below:
            return None
        whole, part = int(found["whole"] or 0), _fraction(found["above"]) / below
        return Quantity(scale * (whole + part), is_percent=is_percent)
    return _decimal(found["decimal"], int(found["power"] or found["exponent"] or 0), scale, is_percent)


def _decimal(written: str, exponent: int, scale: int, is_percent: bool) -> Quantity | None:
    if abs(exponent) > LARGEST_EXPONENT:
        return None
    unit = Fraction(10) ** exponent * scale
    bare = re.sub(r"[, ]", "", written)
    behind = len(bare.partition(".")[2])
    if not behind:
        return Quantity(_fraction(bare) * unit, is_percent=is_percent)
    place = abs(unit) / 10**behind
    return Quantity(_fraction(bare) * unit, place, len(bare.replace(".", "").lstrip("0")), is_percent)


def _fraction(written: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", written).rstrip("."))
