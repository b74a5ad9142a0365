"""Finished and unfinished runs on disk, one folder for each content key, so that no run is made twice.

`<root>/<key>/run.json` and `maps.npy` exist once a run is finished, `state.pt` while it is not.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...files import replacing
from .curves import DetectionCurves
from .evaluation import METRICS, LocalizationResult


@dataclass(frozen=True)
class Run:
    """One network, trained and tested.

    Attributes:
        maps: score maps [K,H,W] of the pictures that are shown.
        losses: of each step, empty where nothing was trained.
        best_step: the step that was kept.
        seconds: wall time of training and testing.
    """

    result: LocalizationResult
    maps: Tensor
    losses: list[float] = field(default_factory=list)
    curves: DetectionCurves = field(default_factory=DetectionCurves)
    best_step: int = 0
    seconds: float = 0.0


def content_key(content: Mapping[str, Any]) -> str:
    """A name for a run that changes with everything it depends on."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


class RunStore:
    """Runs below one folder. Writes are atomic; a run that is there is never written again."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def state_path(self, key: str) -> Path:
        """Where the state of the unfinished run belongs."""
        return self.root / key / "state.pt"

    def find(self, key: str) -> Run | None:
        """The finished run, None where there is none. Raises InputError for a damaged one."""
        path = self.root / key / "run.json"
        if not path.is_file():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            values = {name: stored["result"][name] for name in METRICS}
            result = LocalizationResult(**{n: float("nan") if v is None else v for n, v in values.items()})
            curves = DetectionCurves(**{name: tuple(values) for name, values in stored["curves"].items()})
            maps = torch.from_numpy(np.load(path.with_name("maps.npy"), allow_pickle=False))
            return Run(result, maps, stored["losses"], curves, stored["best_step"], stored["seconds"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(f"stored run: {path.parent} is damaged ({error}). Remove this folder.") from error

    def save(self, key: str, run: Run, about: Mapping[str, Any]) -> None:
        """Keep a finished run; `about` (plain values) is for people who look into the file."""
        folder = self.root / key
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, run.maps.numpy())
        _write(folder / "maps.npy", buffer.getvalue())
        stored = {
            "about": dict(about),
            "result": run.result.as_dict(),
            "best_step": run.best_step,
            "seconds": run.seconds,
            "curves": asdict(run.curves),
            "losses": run.losses,
        }
        _write(folder / "run.json", json.dumps(stored, allow_nan=False).encode())
        self.state_path(key).unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)
