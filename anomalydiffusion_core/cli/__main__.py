"""``python -m anomalydiffusion_core.cli``."""

from __future__ import annotations

from . import app

app()
