"""Lines of a manifest that were doubled, edited or removed are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.pairs import MANIFEST, load_exported
from anomalydiffusion_core.errors import DatasetError
from anomalydiffusion_core.evaluation.localization.sources import pairs_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pairs of part/crack and one of part/hole."""
    images, masks = torch.rand(3, 3, 16, 16), torch.zeros(3, 1, 16, 16)
    masks[:, :, 4:8, 4:9] = 1
    export_pairs(tmp_path / "out", "part", "crack", images, masks, images, [{}] * 3)
    export_pairs(tmp_path / "out", "part", "hole", images[:1], masks[:1], images[:1], [{}])
    return tmp_path / "out"


def _lines(folder: Path) -> list[str]:
    return (folder / MANIFEST).read_text(encoding="utf-8").splitlines()


def _write(folder: Path, lines: list[str]) -> None:
    (folder / MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_doubled_line_is_named(folder: Path) -> None:
    lines = _lines(folder)
    _write(folder, [*lines, lines[1], lines[1]])
    with pytest.raises(DatasetError, match=r"part/test/crack/001\.png is in 3 lines"):
        load_exported(folder)


@pytest.mark.parametrize(("key", "value"), [("defect", "hole"), ("object", "bottle")])
def test_a_line_that_contradicts_its_folder_is_named(folder: Path, key: str, value: str) -> None:
    lines = _lines(folder)
    _write(folder, [*lines[:2], json.dumps({**json.loads(lines[2]), key: value}), lines[3]])
    with pytest.raises(DatasetError, match=r"crack/002\.png says .*is of part/crack"):
        load_exported(folder)


@pytest.mark.parametrize("name", ["test/crack/001.png", "ground_truth/crack/001_mask.png"])
def test_a_file_that_was_exchanged_is_named(folder: Path, name: str) -> None:
    path = folder / "part" / name
    path.write_bytes((folder / "part" / name.replace("001", "002")).read_bytes() + b"x")
    with pytest.raises(DatasetError, match="001.*has changed since it was written"):
        pairs_folder(folder)


def test_images_without_a_line_do_not_count_and_are_named(folder: Path) -> None:
    assert pairs_folder(folder).notices == ()
    _write(folder, _lines(folder)[1:])
    source = pairs_folder(folder)
    assert source.count == 3
    assert source.notices == ("out: in no line of the manifest, so that they do not count: part/test/crack/000.png",)


def test_a_manifest_in_another_encoding_is_named(folder: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text, encoding="utf-16")
    with pytest.raises(DatasetError, match=r"manifest\.jsonl"):
        load_exported(folder)
