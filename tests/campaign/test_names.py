"""Names that people and machines type, everywhere a name is taken: used, or refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import Campaign, drafts_in, files_of

from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.data.export import ExportSettings, PairBatch, export_batches
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.files import contained, new_numbered_folder
from anomalydiffusion_core.store import FolderStore, save_numbered

PARTS = [
    "a", "A b", "crack?", "part: A", "ä", "é" * 60, "x" * 120, "x" * 121, "x" * 200, "x" * 5000, ".hidden", "..", ".",
    "", " ", "a ", " a", "a.", "con", "NUL.txt", "\x00", "a\x00b", "\n", "\x7f", "\ud800", "\U0001f600", "a*b", "a|b",
    '"', "<", "$HOME", "~", "~root", "%s", "{x}", "-rf", "a\\b", "C:", "C:\\x", "\\\\host\\x", "/etc", "//x", "a//b",
    "./a", "a/./b",
    "a/../b", "../a", "a/../../b", "_00001", "a_00001", "a.safetensors", "a.partial", ".a.partial", "中文", "a\u202eb",
]  # fmt: skip


def names(campaign: Campaign, count: int) -> list[str]:
    """The list above, and names put together of its entries, some of them very deep."""
    made = list(PARTS)
    while len(made) < count:
        depth = campaign.random.choice([2, 2, 3, 5, 17, 2000])
        made.append(campaign.random.choice("/\\").join(campaign.random.choice(PARTS) for _ in range(depth)))
    return made[:count] if count >= len(PARTS) else campaign.random.sample(made, count)


def use_names(campaign: Campaign, count: int, folder: Path) -> None:
    root = folder / "root"
    root.mkdir()
    image = torch.zeros(1, 3, 8, 8)
    mask = torch.ones(1, 1, 8, 8)
    rows = torch.ones(1, 4)
    for number, name in enumerate(names(campaign, count)):
        shown = f"{number} {name[:40]!a}"

        def saved(name: str = name, number: int = number) -> Path:
            store = FolderStore(root / "models")
            bundle = AnomalyBundle("mask", {"a/b": rows}, None, {"content_key": f"key {number}"})
            return save_numbered(store, name, bundle.to_bytes())

        path = campaign.attempt(f"{shown} file", saved, "name: ")
        if path is not None and FolderStore(root / "models").find(f"key {number}") != path:
            campaign.fell_short(shown, "was saved and is not found again")

        def exported(name: str = name) -> Path:
            target = contained(root / "output", name, "folder")
            with new_numbered_folder(target.parent, target.name) as made:
                (made.path / "x").write_text("x")
            return made.final

        campaign.attempt(f"{shown} folder", exported, "folder: ")
        for key in (f"{name}/crack", f"part/{name}"):

            def pairs(key: str = key) -> Any:
                batch = PairBatch(key, image, mask, image, [{}])
                return export_batches(root / "pairs", [batch], ExportSettings())

            campaign.attempt(f"{shown} type", pairs)
        outside = [path for path in folder.iterdir() if path != root]
        if outside:
            campaign.fell_short(shown, f"wrote {outside[0]}")
        left = drafts_in(root)
        if left:
            campaign.fell_short(shown, f"left {left[0]}")
    assert files_of(root)


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_names(count: int, tmp_path: Path) -> None:
    campaign = Campaign(f"{count} names")
    use_names(campaign, count, tmp_path)
    campaign.end()


def test_a_name_that_is_too_long_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="5000 bytes"):
        FolderStore(tmp_path).new_path("x" * 5000)
    with pytest.raises(InputError, match="2000 folders inside one another"):
        FolderStore(tmp_path).new_path("/".join(["x"] * 2000))
    with pytest.raises(InputError, match="hidden"):
        FolderStore(tmp_path).new_path("a/.hidden")
