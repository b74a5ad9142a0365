"""Masks on disk: ``<object>/<defect>/000.png``, with a record of every sample, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.images import write_mask
from ..errors import InputError
from ..files import contained, write_json
from ..lines import append_lines, begin_or_resume, read_lines
from ..progress import MakeProgress
from .cleanup import CleanedMasks
from .collection import Collection, MaskSource, collect_masks

PLAN, SAMPLES, SUMMARY, REPORT = "plan.json", "samples.jsonl", "summary.json", "report.txt"


def collect_into(
    folder: Path,
    keys: Sequence[str],
    source: Callable[[str], MaskSource],
    count: int,
    tries: int,
    plan: Mapping[str, Any],
    make_progress: Callable[[str], MakeProgress],
) -> str:
    """Write ``count`` masks of each type ``object/defect`` below ``folder``, or resume there; returns the report.

    source: what samples the masks of a type. plan: plain values, by name, that decide the masks. make_progress: a type
    to what makes its bar. Files that exist are kept; a larger count adds to them. Writes summary.json and report.txt.
    Raises InputError for a folder begun with another plan, and for a type of which no sample is kept.
    """
    sources = {key: (contained(folder, key, "type"), source(key)) for key in keys}
    begin_or_resume(folder / PLAN, plan, folder)
    report, summary = [], {}
    for key, (own, samples) in sources.items():
        lines = read_lines(own / SAMPLES)
        found = Collection([line.get("rejected", "") for line in lines])
        save = _Saving(own, found.kept)
        try:
            found = collect_masks(samples, count, tries, make_progress(key), found, save)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
        report.append(f"{key}: {found.describe()}")
        if found.kept < count:
            report[-1] += f"; {count} were wanted"
        summary[key] = {"masks": found.kept, "samples": len(found.outcomes), "report": report[-1]}
    write_json(folder / SUMMARY, {"plan": dict(plan), "count": count, "types": summary})
    (folder / REPORT).write_text("\n".join(report) + "\n", encoding="utf-8")
    return "\n".join(report)


class _Saving:
    """Writes each part of a collection: the masks first, so that a sample in the record has its file."""

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder, self._kept = folder, kept

    def __call__(self, first: int, part: CleanedMasks) -> None:
        lines: dict[int, dict[str, Any]] = {place: {"rejected": reason} for place, reason in part.rejected}
        for place, mask in zip(part.accepted, part.masks, strict=True):
            path = self._folder / f"{self._kept:03d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mask(path, mask)
            lines[place] = {"file": path.name}
            self._kept += 1
        append_lines(self._folder / SAMPLES, [{"sample": first + place, **lines[place]} for place in sorted(lines)])
