"""Undefined metrics outside of this package: NaN here, null in JSON, which has no NaN."""

from __future__ import annotations

import math


def defined(value: float) -> float | None:
    """The value, or None where it is NaN."""
    return None if math.isnan(value) else value
