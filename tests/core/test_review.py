"""A review of pairs: the page holds everything, decisions reach the manifest, and evaluations respect them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.generated import load_generated
from anomalydiffusion_core.data.pairs import MANIFEST, load_exported
from anomalydiffusion_core.data.review import PAGE, Merged, merge_decisions, reviewed, write_review
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.localization.sources import pairs_folder

NAMES = [f"part/test/hole/{number:03d}.png" for number in range(4)]


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    normal, mask = torch.full((1, 3, 40, 48), 0.25), torch.zeros(1, 1, 40, 48)
    mask[:, :, 10:20, 10:20] = 1
    images = torch.cat([normal + mask * level / 10 for level in range(1, 5)])
    pairs, count = tmp_path / "pairs", len(images)
    records = [{"seed": i, "effect_score": 5.0 * i, "note": "</script><b>"} for i in range(count)]
    batch = (images, mask.expand(count, -1, -1, -1), normal.expand(count, -1, -1, -1))
    export_pairs(pairs, "part", "hole", *batch, records)
    return pairs


def _content(page: Path) -> dict[str, Any]:
    text = page.read_text("utf-8")
    begin = text.index('id="content">') + len('id="content">')
    content: dict[str, Any] = json.loads(text[begin : text.index("</script>", begin)])
    return content


def _decide(folder: Path, file: Path, **changes: Any) -> Path:
    content = _content(write_review(folder))
    saved = {name: content[name] for name in ("kind", "folder", "pairs")}
    file.write_text(json.dumps(saved | {"decisions": {}} | changes))
    return file


def test_the_page_holds_all_pairs_and_needs_nothing_else(folder: Path) -> None:
    page = write_review(folder)
    content, text = _content(page), page.read_text("utf-8")
    assert page == folder / PAGE and [card["image"] for card in content["cards"]] == NAMES
    card = content["cards"][2]
    assert card["type"] == "part/hole" and card["known"] == {"effect_score": 10.0, "seed": 2}
    assert [view["name"] for view in card["views"]] == ["image", "enlarged", "normal"]
    assert all(view["source"].startswith("data:image/jpeg;base64,") for view in card["views"])
    assert not any(word in text for word in ("http://", "https://", 'src="', "@import"))
    assert text.count("</script>") == 2, "nothing of a manifest ends the script"
    before = page.stat().st_mtime_ns
    assert write_review(folder).stat().st_mtime_ns == before


def test_rejected_pairs_are_not_used(folder: Path, tmp_path: Path) -> None:
    whole = pairs_folder(folder)
    file = _decide(folder, tmp_path / "d.json", decisions={NAMES[0]: "rejected", NAMES[2]: "rejected"})
    assert merge_decisions(folder, file) == Merged(0, 2, 2)
    assert [pair.record["image"] for pair in load_exported(folder)] == [NAMES[1], NAMES[3]]
    assert [image.image.name for image in load_generated(folder)] == ["001.png", "003.png"]
    source = pairs_folder(folder)
    assert source.count == 2 and source.digest != whole.digest
    images = source.read(32)["part/hole"][0]
    assert len(images) == 2
    again = _decide(folder, tmp_path / "d2.json", decisions={NAMES[0]: "accepted", NAMES[2]: None})
    assert merge_decisions(folder, again) == Merged(1, 0, 3)
    assert _content(write_review(folder))["cards"][0]["decision"] == "accepted"
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text("utf-8").splitlines()]
    assert lines[0]["review"] == "accepted" and "review" not in lines[2]


def test_decisions_of_something_else_are_refused(folder: Path, tmp_path: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    file = tmp_path / "d.json"
    for changes, message in (
        ({"kind": "something"}, "does not come from a review"),
        ({"decisions": []}, "does not come from a review"),
        ({"pairs": "0" * 24}, "belongs to other pairs"),
        ({"decisions": {"../x.png": "rejected"}}, "belongs to other pairs"),
        ({"decisions": {NAMES[0]: "maybe"}}, "unknown decision 'maybe'"),
    ):
        with pytest.raises(InputError, match=message):
            merge_decisions(folder, _decide(folder, file, **changes))
    for text in ("{", "[" * 100_000, "null"):
        file.write_text(text)
        with pytest.raises(InputError, match="decisions: "):
            merge_decisions(folder, file)
    with pytest.raises(InputError, match="missing.json cannot be read"):
        merge_decisions(folder, tmp_path / "missing.json")
    assert (folder / MANIFEST).read_bytes() == before
    (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match="has no manifest"):
        write_review(folder)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["review", str(folder)])
    assert done.exit_code == 0 and PAGE in done.output and (folder / PAGE).is_file()
    file = _decide(folder, tmp_path / "d.json", decisions={NAMES[1]: "rejected"})
    done = CliRunner().invoke(app, ["review", str(folder), "--decisions", str(file)])
    assert "0 pairs accepted, 1 rejected, 3 without a decision" in done.output
    assert reviewed(folder) == Merged(0, 1, 3)
