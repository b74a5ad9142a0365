"""Tensors between ComfyUI and the core, and the folders that are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


def test_images_and_masks_survive_the_way_to_the_core_and_back(extension: Any) -> None:
    image = torch.rand(2, 5, 7, 4)
    core = extension.tensors.to_core_images(image)
    assert core.shape == (2, 3, 5, 7)
    assert torch.equal(extension.tensors.to_host_images(core), image[..., :3])
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


def test_an_owner_confines_what_workflows_can_read(
    extension: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, error = extension.folders, extension.errors.InputError
    secret, listed = tmp_path / "secret", tmp_path / "listed"
    for folder in (secret, listed):
        (folder / "part").mkdir(parents=True)
    inside = Path(extension.folder_paths.get_input_directory()) / "inside"
    inside.mkdir()
    assert host.data_folder(str(secret)) == secret
    monkeypatch.setenv(host.READ_ROOTS_VARIABLE, str(listed))
    assert host.data_folder(str(listed), "part") == listed
    assert host.data_folder("inside").resolve() == inside.resolve()
    said = set()
    places: list[tuple[Path | str, str]] = [
        (secret, ""),
        (tmp_path / "nothing", ""),
        ("../../secret", ""),
        (listed, "../secret"),
    ]
    for place, part in places:
        with pytest.raises(error, match="lies outside") as caught:
            host.data_folder(str(place), part)
        said.add(str(caught.value).partition(": ")[2])
    assert len(said) == 1
    with pytest.raises(error, match="^weights: lies outside"):
        extension.module("nodes.host.evaluation").weights_file(str(secret / "w.pckl"))
    monkeypatch.setenv(host.READ_ROOTS_VARIABLE, "")
    with pytest.raises(error, match="lies outside"):
        host.data_folder(str(listed))


@pytest.mark.parametrize("text", ["x" * 5000, "a\x00b", "~nobody_here/x", "/".join(["x"] * 3000)])
def test_paths_that_cannot_be_are_named(extension: Any, text: str) -> None:
    with pytest.raises(extension.errors.InputError, match="^folder: ") as caught:
        extension.folders.data_folder(text)
    assert len(str(caught.value)) < 1000


def test_links_to_nothing_among_the_bundles_stop_no_training(extension: Any) -> None:
    folder = Path(extension.folder_paths.get_folder_paths("anomalydiffusion")[0])
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "link.safetensors"
    link.symlink_to(folder / "nothing")
    try:
        store = extension.folders.ModelStore("anomalydiffusion")
        store.written(link)
        assert store.find("no such key") is None
    finally:
        link.unlink()
        store.written(link)


def test_model_folders_keep_what_the_user_configured(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"anomalydiffusion": (["/data/bundles"], {".sft"})}
    monkeypatch.setattr(extension.folder_paths, "folder_names_and_paths", known)
    extension.folders.register_model_folders()
    extension.folders.register_model_folders()
    models = extension.folder_paths.models_dir
    paths, extensions = known["anomalydiffusion"]
    assert paths == ["/data/bundles", str(Path(models) / "anomalydiffusion")]
    assert extensions == {".sft", ".safetensors", ".pt"}
    assert known["anomalydiffusion_checkpoints"][1] == {".safetensors", ".ckpt"}
    assert str(ROOT / "models") in known["anomalydiffusion_checkpoints"][0]


def test_unknown_files_are_refused_with_a_list(extension: Any, prior: Path) -> None:
    with pytest.raises(extension.errors.InputError, match=r"unknown file '\.\./tiny.safetensors'.*tiny\.safetensors"):
        extension.run("LoadLDMCheckpoint", checkpoint="../tiny.safetensors")
