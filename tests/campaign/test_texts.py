"""Mutated workflows, manifests and results: read, or refused by name, by whatever reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import Campaign, changed, damaged
from PIL import Image
from tiny_quickstart import QUICKSTART

from anomalydiffusion_core.data.checking import check_pairs
from anomalydiffusion_core.data.pairs import load_exported, load_exported_tensors, recorded_method
from anomalydiffusion_core.evaluation.localization.sources import pairs_folder
from anomalydiffusion_core.evaluation.tables.build import build_tables
from anomalydiffusion_core.evaluation.tables.records import find_records
from anomalydiffusion_core.evaluation.tables.text import to_csv, to_latex, to_markdown
from anomalydiffusion_core.server.results import Results, summary
from anomalydiffusion_core.server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs

ODD_TEXTS = [
    b"", b"null", b"[]", b"{}", b"0", b"NaN", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 50_000, b"{",
    b"\x00",
    "{}".encode("utf-16"), b"\xef\xbb\xbf{}", b'{"a": 1e999}', b"9" * 10_000,
]  # fmt: skip


def mutations(campaign: Campaign, value: Any, lines: bool = False) -> bytes:
    """The bytes of a text file of JSON after one of three kinds of accidents."""

    def text(plain: Any) -> bytes:
        parts = plain if lines and isinstance(plain, list) else [plain]
        return "\n".join(json.dumps(part) for part in parts).encode()

    kind = campaign.random.random()
    if kind < 0.15:
        odd = campaign.random.choice(ODD_TEXTS)
        return text(value) + b"\n" + odd if lines else odd
    if kind < 0.4:
        return damaged(text(value), campaign.random)
    return text(changed(value, campaign.random))


def workflows(campaign: Campaign, count: int, folder: Path) -> None:
    whole, path = json.loads(QUICKSTART.read_text(encoding="utf-8")), folder / "x.json"
    values = ["2.folder=a", "Train Anomaly Embedding.steps=3", "8.cfg=2", "9.folder=b"]
    for number in range(count):
        path.write_bytes(mutations(campaign, whole))

        loaded = campaign.attempt(str(number), lambda: load_workflow(path), "x.json")
        if loaded is None:
            continue
        for text in values:
            change = [parse_assignment(text)]
            campaign.attempt(f"{number} set", lambda w=loaded, c=change: with_inputs(w, c), "set: ")
        campaign.attempt(f"{number} data", lambda w=loaded: with_dataset(w, {"folder": "x", "category": "y"}))


def manifests(campaign: Campaign, count: int, folder: Path) -> None:
    records = []
    for number in range(3):
        for part, name in (("test", "{}.png"), ("ground_truth", "{}_mask.png"), ("normal", "{}.png")):
            target = folder / "a" / part / "b" / name.format(f"{number:03d}")
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((16, 16), 255, np.uint8) if part == "ground_truth" else np.zeros((16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(target)
        place = {"image": f"a/test/b/{number:03d}.png", "mask": f"a/ground_truth/b/{number:03d}_mask.png"}
        scores = {"seed": number, "effect_score": 20.5, "fill_share": 0.5, "outside_max_abs_diff": 0}
        settings = {"settings": {"reweighting": "monotone", "steps": 4}}
        normal = {"normal": f"a/normal/b/{number:03d}.png", "object": "a", "defect": "b"}
        more = {"version": 2, "sha256": {"image": "0" * 64}, "bits": 8, "learned_from": ""}
        records.append({**place, **normal, **scores, **settings, **more})
    for number in range(count):
        (folder / "manifest.jsonl").write_bytes(mutations(campaign, records, lines=True))

        def use() -> None:
            pairs = load_exported(folder)
            recorded_method([pair.record for pair in pairs])
            summary(Results(folder, pairs), 1.0, None)
            load_exported_tensors(pairs, 16)
            check_pairs(folder).report(folder)
            pairs_folder(folder).read(16)

        campaign.attempt(str(number), use)


def results(campaign: Campaign, count: int, folder: Path) -> None:
    base = {"category": "bottle", "method": "Ours", "training_set": "generated", "seeds": [0, 1], "reduced": True}
    more = {"metrics": {"pixel_ap": [0.5, 0.6], "pixel_auroc": [0.9, None]}, "budget": {"steps": 3, "split": "x"}}
    records = [{**base, **more, "data": "mvtec", "table": None, "row": ""}, {**base, **more, "method": "DRAEM"}]
    records.append({**base, **more, "method": "", "training_set": "few real"})
    whole = {"format": "anomalydiffusion results", "version": 1, "records": records}
    for number in range(count):
        (folder / "results.json").write_bytes(mutations(campaign, whole))

        def use() -> None:
            built = build_tables(find_records([folder]), [])
            for write in (to_markdown, to_csv, to_latex):
                write(built)

        campaign.attempt(str(number), use)


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [workflows, manifests, results])
def test_mutated_texts(kind: Callable[[Campaign, int, Path], None], count: int, tmp_path: Path) -> None:
    campaign = Campaign(f"{count} mutated {kind.__name__}")
    kind(campaign, count, tmp_path)
    campaign.end()
