"""Amounts of resources as Kubernetes spells them: `4`, `500m`, `64Gi`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d+)|([A-Za-z]*))")


def amount(text: str) -> Fraction:
    """Exactly, in units: cores, bytes, devices. Raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    number, exponent, unit = found.groups() if found else ("", "", "?")
    if found is None or (unit or "") not in {**_BINARY, **_DECIMAL}:
        raise ValueError(f"{text!r} is no quantity")
    if exponent:
        return Fraction(number + exponent)
    return Fraction(number) * (_BINARY[unit] if unit in _BINARY else Fraction(10) ** _DECIMAL[unit or ""])


def total(resources: Iterable[Mapping[str, str]], times: int = 1) -> dict[str, str]:
    """The sum by resource, `times` times, spelled as plainly as it can be without a loss."""
    sums: dict[str, Fraction] = {}
    for each in resources:
        for name, text in each.items():
            sums[name] = sums.get(name, Fraction(0)) + times * amount(text)
    return {name: spelled(value) for name, value in sums.items()}


def spelled(value: Fraction) -> str:
    """In the largest binary unit from Mi on that divides it, else in units or thousandths of one."""
    if value.denominator != 1:
        return f"{-(-value * 1000 // 1)}m"
    units = [unit for unit in ("Gi", "Mi") if value and value % _BINARY[unit] == 0]
    return f"{value // _BINARY[units[0]]}{units[0]}" if units else str(int(value))
