"""The training nodes: bundles saved once, trainings stopped, models left alone; also on Stable Diffusion 1.5."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image


def test_bundle_is_saved_reused_and_the_same_again(extension: Any, loaded: Any, dataset: Any, bundle: Any) -> None:
    folder = Path(extension.folder_paths.models_dir) / "anomalydiffusion"
    saved = (folder / "shared_00001.safetensors").read_bytes()
    before = extension.state_of(loaded.model)
    values = {
        "model": loaded.model,
        "vae": loaded.vae,
        "dataset": dataset,
        "initial": loaded.normal,
        **extension.small,
    }
    again = extension.run("TrainAnomalyEmbedding", name="shared", **values)
    assert not (folder / "shared_00002.safetensors").exists()
    assert "loaded" in again.args[2] and again.ui["bundle_file"] == ["shared_00001.safetensors"]
    for key, rows in bundle.tokens.items():
        assert torch.equal(again.args[0].tokens[key], rows)
    (folder / "shared_00001.safetensors").unlink()
    extension.run("TrainAnomalyEmbedding", name="shared", **values)
    assert (folder / "shared_00001.safetensors").read_bytes() == saved
    assert extension.state_of(loaded.model) == before
    metadata = bundle.metadata
    assert metadata["split"] == "first n" and len(metadata["training_files"]) == 8
    assert "part/test/dot/000.png" in metadata["training_files"]


def interrupt_at(extension: Any, monkeypatch: pytest.MonkeyPatch, at_done: int) -> list[int]:
    """The user interrupts when the bar stands at `at_done`; returns where it stood."""
    import comfy.model_management as management

    places: list[int] = []
    original = extension.host.Progress.at

    def at(progress: Any, done: int, preview: Any = None) -> None:
        places.append(done)
        if done == at_done:
            management.interrupt_current_processing(True)
        original(progress, done, preview)

    monkeypatch.setattr(extension.host.Progress, "at", at)
    return places


@pytest.mark.parametrize("node", ["TrainAnomalyEmbedding", "TrainMaskEmbedding"])
def test_interrupt_keeps_what_was_learned_and_the_same_inputs_go_on(
    extension: Any, loaded: Any, dataset: Any, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    import comfy.model_management as management

    before, folder = extension.state_of(loaded.model), Path(extension.folder_paths.models_dir) / "anomalydiffusion"
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "steps": 5}
    values["options"] = extension.run("TrainingOptions", preview_every=2, preview_steps=1, refresh_every=2).args[0]
    with monkeypatch.context() as patch:
        places = interrupt_at(extension, patch, 8 + 3)
        with pytest.raises(management.InterruptProcessingException):
            extension.run(node, name=f"stopped_{node}", **values)
    assert places[-1] == 11, "8 encoded pictures, then the third step"
    assert extension.state_of(loaded.model) == before
    partial = extension.run("LoadSpatialEncoder", bundle_name=f"stopped_{node}_00001.safetensors").args[0]
    assert partial.metadata["stopped_at_step"] == 3 and len(partial.metadata["losses"]) == 3
    assert partial.metadata["stopped_by"] == "InterruptProcessingException"
    assert "content_key" not in partial.metadata and partial.metadata["split"] == "first n"
    assert len(list((folder / ".training").glob("*.pt"))) == 1
    assert not any(".training" in name for name in extension.host.model_files("anomalydiffusion"))
    resumed = extension.run(node, name=f"whole_{node}", **values)
    assert "resumed after step 3" in resumed.args[2]
    assert not list((folder / ".training").iterdir())
    (folder / f"whole_{node}_00001.safetensors").rename(folder / f"{node}.kept")
    straight = extension.run(node, name=f"whole_{node}", **values)
    assert "resumed" not in straight.args[2]
    again = folder / f"whole_{node}_00001.safetensors"
    assert again.read_bytes() == (folder / f"{node}.kept").read_bytes()


def test_finished_training_goes_on_with_more_steps_where_its_state_is_kept(
    extension: Any, loaded: Any, dataset: Any
) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "name": "longer"}
    values |= {"seed": 5, "options": extension.run("TrainingOptions", keep_state=True).args[0]}
    extension.run("TrainMaskEmbedding", **values)
    more = extension.run("TrainMaskEmbedding", **{**values, "steps": 4})
    assert "resumed after step 2" in more.args[2]
    anew = extension.run("TrainingOptions", resume=False).args[0]
    Path(extension.host.model_file("anomalydiffusion", more.ui["bundle_file"][0])).unlink()
    straight = extension.run("TrainMaskEmbedding", **{**values, "steps": 4, "options": anew})
    assert "resumed" not in straight.args[2]
    for key, rows in more.args[0].tokens.items():
        assert torch.equal(straight.args[0].tokens[key], rows)
    folder = Path(extension.folder_paths.models_dir) / "anomalydiffusion" / ".training"
    assert not list(folder.iterdir())


def test_previews_show_a_pair_and_its_blended_sample_beside_the_curve(
    extension: Any, loaded: Any, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, original = [], extension.host.Progress.at

    def at(progress: Any, done: int, preview: Any = None) -> None:
        if preview is not None:
            pictures.append((done, tuple(preview.shape)))
        original(progress, done, preview)

    monkeypatch.setattr(extension.host.Progress, "at", at)
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "steps": 4}
    options = extension.run("TrainingOptions", preview_every=2, preview_steps=1).args[0]
    extension.run("TrainAnomalyEmbedding", name="shown", **values, options=options)
    # Four cells of 256 pixels in a row: picture, mask, sample, curve.
    assert [done for done, _ in pictures] == [10, 12]
    assert all(shape == (3, 264, 1044) for _, shape in pictures)


def test_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_state(
    extension: Any, loaded: Any, dataset: Any
) -> None:
    values = {**extension.small, "steps": 30, "learning_rate": 1e30, "encoder": "light"}
    with pytest.raises(extension.errors.TrainingError, match=r"not finite at step .*saved as wild_00001"):
        extension.run(
            "TrainAnomalyEmbedding", model=loaded.model, vae=loaded.vae, dataset=dataset, name="wild", **values
        )
    kept = extension.run("LoadSpatialEncoder", bundle_name="wild_00001.safetensors").args[0]
    assert kept.metadata["stopped_at_step"] >= 2
    assert all(rows.isfinite().all() for rows in kept.tokens.values())


def test_training_needs_defects_and_a_good_name(extension: Any, loaded: Any, dataset: Any, tmp_path: Path) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, **extension.small}
    with pytest.raises(extension.errors.InputError, match="name: '../x' does not lie inside"):
        extension.run("TrainMaskEmbedding", dataset=dataset, name="../x", **values)
    good_only = tmp_path / "part" / "train" / "good"
    good_only.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(good_only / "0.png")
    normals = extension.load(folder=str(tmp_path)).args[0]
    with pytest.raises(extension.errors.InputError, match="part has no defect pictures"):
        extension.run("TrainMaskEmbedding", dataset=normals, **values)


def test_slim_stable_diffusion_from_the_stock_loader(extension: Any, prior: Path, dataset: Any) -> None:
    """Random weights of the smallest U-Net that ComfyUI takes for Stable Diffusion 1.5: trains and samples."""
    import comfy.sd
    from safetensors.torch import load_file, save_file

    architecture = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [0, 0],
        "transformer_depth_middle": -1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "context_dim": 768,
        "num_heads": 8,
        "num_head_channels": -1,
        "legacy": False,
        "use_checkpoint": False,
        "adm_in_channels": None,
    }
    config = extension.models._LdmConfig(architecture)
    config.set_inference_dtype(torch.float32, None)
    shapes = config.get_model({}, "").diffusion_model.state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.diffusion_model.{name}": (torch.randn(value.shape, generator=generator) * 0.02).half()
        for name, value in shapes.items()
    }
    autoencoder = {name: value for name, value in load_file(prior).items() if name.startswith("first_stage_model.")}
    path = extension.base / "slim_sd15.safetensors"
    save_file(weights | autoencoder, path)
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)
    assert type(model.model.model_config).__name__ == "SD15" and clip is None
    before = extension.state_of(model)
    trained = extension.run(
        "TrainAnomalyEmbedding",
        model=model,
        vae=vae,
        dataset=dataset,
        name="slim",
        **{**extension.small, "resolution": 32},
    ).args[0]
    assert trained.width == 768
    assert extension.state_of(model) == before
    loaded = SimpleNamespace(model=model, vae=vae)
    image, mask = torch.rand(1, 32, 32, 3), extension.box_mask(size=(32, 32))
    images = extension.blend(loaded, trained, image, mask).args[0]
    assert images.isfinite().all() and not torch.equal(images, image)


def test_a_lora_changes_what_is_trained_but_not_the_base_model(
    extension: Any, loaded: Any, dataset: Any, bundle: Any
) -> None:
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    weight = dict(loaded.model.model.named_parameters())[name]
    adapted = loaded.model.clone()
    adapted.add_patches({name: ("diff", (torch.full_like(weight, 0.1),))}, 1.0)
    values = {"vae": loaded.vae, "dataset": dataset, "initial": loaded.normal, **extension.small}
    other = extension.run("TrainAnomalyEmbedding", model=adapted, name="adapted", **values).args[0]
    assert other.base_fingerprint == bundle.base_fingerprint
    assert other.metadata["content_key"] != bundle.metadata["content_key"]
    assert not torch.equal(other.tokens["part/dot"], bundle.tokens["part/dot"])
    same = extension.run("TrainAnomalyEmbedding", model=loaded.model, name="shared", **values)
    assert same.args[0].metadata["content_key"] == bundle.metadata["content_key"] and "loaded" in same.args[2]


def test_an_embedding_of_another_base_model_is_refused(extension: Any, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 64, 64, 3), extension.box_mask()
    assert "notice" not in extension.blend(loaded, bundle, image, mask).args[4]
    own = bundle.base_fingerprint
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    weight = dict(loaded.model.model.named_parameters())[name]
    before = weight.detach().clone()
    with torch.inference_mode():
        weight.mul_(2)
        try:
            message = f"trained on the model {own}, this one is (?!{own})"
            with pytest.raises(extension.errors.InputError, match=message):
                extension.blend(loaded, bundle, image, mask)
        finally:
            weight.copy_(before)
