"""Tensors between ComfyUI and the core, and the folders that are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


def test_pictures_and_masks_survive_the_way_to_the_core_and_back(extension: Any) -> None:
    picture = torch.rand(2, 5, 7, 4)
    core = extension.tensors.to_core_images(picture)
    assert core.shape == (2, 3, 5, 7)
    assert torch.equal(extension.tensors.to_host_images(core), picture[..., :3])
    mask = torch.zeros(2, 5, 7)
    mask[0, 1, 1], mask[1, 2, 3], mask[1, 0, 0] = 1.0, 236 / 255, 0.4
    masks = extension.tensors.to_core_masks(mask)
    assert masks.shape == (2, 1, 5, 7)
    assert masks.sum() == 2 and masks[1, 0, 2, 3] == 1
    with torch.inference_mode():
        made_inside = torch.rand(1, 8, 8, 3)
    assert not extension.tensors.to_core_images(made_inside).is_inference()


def test_empty_mask_is_named(extension: Any) -> None:
    masks = torch.zeros(3, 8, 8)
    masks[0] = masks[2] = 1
    with pytest.raises(extension.errors.InputError, match=r"entry 1 of 3 is empty \(nothing is marked\)"):
        extension.tensors.to_core_masks(masks)
    with pytest.raises(extension.errors.InputError, match=r"largest value is 0\.30"):
        extension.tensors.to_core_masks(torch.full((1, 8, 8), 0.3))


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "..\\b", "C:\\x", "", " ", "link/x"])
def test_writing_outside_of_the_folder_is_refused(extension: Any, tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(extension.errors.InputError, match="folder: "):
        extension.folders.contained(root, name, "folder")
    assert extension.folders.contained(root, "a\\b", "folder") == root / "a" / "b"


def test_output_folders_are_numbered_on_and_never_half_written(extension: Any) -> None:
    host = extension.folders
    root = host.output_root()
    (root / "sub" / "set_00007").mkdir(parents=True)
    with host.new_output_folder("sub/set") as made:
        (made.path / "a.txt").write_text("a")
        assert made.final == root / "sub" / "set_00008" and not made.final.exists()
    assert (made.final / "a.txt").read_text() == "a"
    with pytest.raises(KeyboardInterrupt), host.new_output_folder("sub/set") as made:
        (made.path / "b.txt").write_text("b")
        raise KeyboardInterrupt
    assert sorted(path.name for path in (root / "sub").iterdir()) == ["set_00007", "set_00008"]


def test_model_folders_keep_what_the_user_configured(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"anomalydiffusion": (["/data/bundles"], {".sft"})}
    monkeypatch.setattr(extension.folder_paths, "folder_names_and_paths", known)
    extension.folders.register_model_folders()
    extension.folders.register_model_folders()
    models = extension.folder_paths.models_dir
    paths, extensions = known["anomalydiffusion"]
    assert paths == ["/data/bundles", str(Path(models) / "anomalydiffusion")]
    assert extensions == {".sft", ".safetensors", ".pt"}
    assert known["anomalydiffusion_checkpoints"][1] == {".safetensors"}
    assert str(ROOT / "models") in known["anomalydiffusion_checkpoints"][0]


def test_unknown_files_are_refused_with_a_list(extension: Any, prior: Path) -> None:
    with pytest.raises(extension.errors.InputError, match=r"unknown file '\.\./tiny.safetensors'.*tiny\.safetensors"):
        extension.run("LoadLDMCheckpoint", checkpoint="../tiny.safetensors")
