"""Fetch what a finished workflow wrote on the server, and sum it up in one image and one table of numbers."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.pairs import MANIFEST, ExportedPair, load_exported, manifest_records
from ..errors import DatasetError
from ..plain_json import read_json
from .address import ServerAddress
from .client import RunResult, download

logger = logging.getLogger(__name__)

PAIRS = "pairs"
OTHER_PAIRS = "other_pairs"
TABLES = "tables"
TABLE_FILES = ("tables.md", "tables.csv", "tables.tex")
EVALUATION = "evaluation"
EVALUATION_FILE = "evaluation.json"
SHEET = "contact_sheet.png"
ALL_PAIRS = "all_pairs.png"


@dataclass
class Results:
    """What was fetched into `folder`; `reports` are the texts of the nodes, by node id."""

    folder: Path
    pairs: list[ExportedPair] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    reports: dict[str, list[str]] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """The table of the evaluation, empty when the workflow evaluated nothing."""
        path = self.folder / EVALUATION / "table.md"
        return path.read_text(encoding="utf-8").rstrip() if path.is_file() else ""


def fetch_results(address: str | ServerAddress, result: RunResult, folder: Path) -> Results:
    """Copy the exported pairs, the evaluation and all images that nodes showed into `folder`.

    Everything comes over HTTP, so the server may be on another machine. Existing files of the same names are
    replaced. Of several exports the one that was evaluated is `pairs`, the others are below `other_pairs`. Raises
    HostError when the server no longer has a file.
    """
    results = Results(folder)
    exports: list[str] = []
    beside: dict[str, list[str]] = {}
    for node, shown in result.outputs.items():
        if "evaluation_folder" not in shown:  # its text is the table
            results.reports[node] = [str(text) for text in shown.get("text", [])]
        exports += shown.get("pairs_folder", [])
        for place in shown.get("pairs_folder", []):
            beside.setdefault(place, []).extend(shown.get("pairs_beside", []))
        for place in shown.get("evaluation_folder", []):
            results.evaluation = _fetch_evaluation(address, place, folder / EVALUATION)
        for place in shown.get("tables_folder", []):
            for name in (*TABLE_FILES, *(item["filename"] for item in shown.get("images", []))):
                _fetch_file(address, place, name, folder / TABLES)
        for item in shown.get("images", []):
            if item.get("type") == "output":
                continue  # lies in one of the folders
            download(address, item, folder / "pictures" / f"node_{node.replace(':', '_')}")
    evaluated = results.evaluation.get("pairs_folder")
    own = evaluated if evaluated in exports else next(iter(exports), None)
    for place in exports:
        target = folder / PAIRS if place == own else folder / OTHER_PAIRS / PurePosixPath(place).name
        _fetch_pairs(address, place, target)
        for name in beside[place]:
            _fetch_file(address, place, name, target)
    if (folder / PAIRS / MANIFEST).is_file():
        results.pairs = load_exported(folder / PAIRS)
    return results


def _fetch_file(address: str | ServerAddress, place: str, name: str, folder: Path) -> Path:
    """Fetch `<output folder>/<place>/<name>` into `folder`, with the folders in `name`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{name}: a file that the server names does not lie in its folder.")
    item = {"filename": path.name, "subfolder": (PurePosixPath(place) / path.parent).as_posix(), "type": "output"}
    return download(address, item, folder / Path(*path.parent.parts))


def _fetch_pairs(address: str | ServerAddress, place: str, folder: Path) -> None:
    manifest = _fetch_file(address, place, MANIFEST, folder)
    for _, record in manifest_records(manifest):
        for key in ("image", "mask", "normal"):
            if record.get(key):
                _fetch_file(address, place, record[key], folder)


def _fetch_evaluation(address: str | ServerAddress, place: str, folder: Path) -> dict[str, Any]:
    path = _fetch_file(address, place, EVALUATION_FILE, folder)
    evaluation: dict[str, Any] = read_json(path, "evaluation")
    files = evaluation.get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise DatasetError(f"{path}: does not list its files. Run the evaluation again.")
    maps = [entry["file"] for entry in evaluation.get("heat_maps", [])]
    for name in (*files, *maps):
        _fetch_file(address, place, name, folder)
    return evaluation


def summary(results: Results, seconds: float, peak_memory_gb: float | None) -> dict[str, float | int | None]:
    """The figures of a run. A figure that was not measured is None.

    `outside_max_abs_diff`: 0 to 255, outside the masks, over all exported pairs; `effect_score_median`: mean absolute
    change inside a mask beyond what the autoencoder alone does, 0 to 255; `fill_share_median`: share of a mask that
    changed; `pixel_ap_*`: mean over the seeds, on held-out real defects; `seconds`: of the whole run;
    `peak_memory_gb`: of the server, 1e9 bytes, where this process started it.
    """
    records = [pair.record for pair in results.pairs]
    outside = [int(r["outside_max_abs_diff"]) for r in records if r.get("outside_max_abs_diff") is not None]
    return {
        "pairs_exported": len(records),
        "outside_max_abs_diff": max(outside) if outside else None,
        "effect_score_median": _median(r.get("effect_score") for r in records),
        "fill_share_median": _median(r.get("fill_share") for r in records),
        "pixel_ap_without_pairs": _mean_metric(results.evaluation, "without", "pixel_ap"),
        "pixel_ap_with_pairs": _mean_metric(results.evaluation, "with", "pixel_ap"),
        "seconds": round(seconds, 1),
        "peak_memory_gb": None if peak_memory_gb is None else round(peak_memory_gb, 3),
    }


def _median(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None and math.isfinite(float(value))]
    return round(statistics.median(known), 4) if known else None


def _mean_metric(evaluation: Mapping[str, Any], arm: str, metric: str) -> float | None:
    values = [run.get(metric) for run in evaluation.get(arm, {}).get("runs", [])]
    known = [float(value) for value in values if value is not None and math.isfinite(float(value))]
    return round(statistics.fmean(known), 4) if known else None
