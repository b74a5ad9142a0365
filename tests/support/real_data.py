"""Where the real images are, of which none is part of the project."""

from __future__ import annotations

import os
from pathlib import Path

REAL = Path(os.environ.get("ANOMALYDIFFUSION_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
