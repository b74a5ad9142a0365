"""The training nodes: bundles saved once, trainings stopped, models left alone; also on Stable Diffusion 1.5."""

from __future__ import annotations

import importlib
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
    original = extension.progress.Progress.at

    def at(progress: Any, done: int, preview: Any = None) -> None:
        places.append(done)
        if done == at_done:
            management.interrupt_current_processing(True)
        original(progress, done, preview)

    monkeypatch.setattr(extension.progress.Progress, "at", at)
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
    assert places[-1] == 11, "8 encoded images, then the third step"
    assert extension.state_of(loaded.model) == before
    partial = extension.run("LoadSpatialEncoder", bundle_name=f"stopped_{node}_00001.safetensors").args[0]
    assert partial.metadata["stopped_at_step"] == 3 and len(partial.metadata["losses"]) == 3
    assert partial.metadata["stopped_by"] == "InterruptProcessingException"
    assert "content_key" not in partial.metadata and partial.metadata["split"] == "first n"
    assert len(list((folder / ".training").glob("*.pt"))) == 1
    assert not any(".training" in name for name in extension.folders.model_files("anomalydiffusion"))
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
    Path(extension.folders.model_file("anomalydiffusion", more.ui["bundle_file"][0])).unlink()
    straight = extension.run("TrainMaskEmbedding", **{**values, "steps": 4, "options": anew})
    assert "resumed" not in straight.args[2]
    for key, rows in more.args[0].tokens.items():
        assert torch.equal(straight.args[0].tokens[key], rows)
    folder = Path(extension.folder_paths.models_dir) / "anomalydiffusion" / ".training"
    assert not list(folder.iterdir())


def test_previews_show_a_pair_and_its_blended_sample_beside_the_curve(
    extension: Any, loaded: Any, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, original = [], extension.progress.Progress.at

    def at(progress: Any, done: int, preview: Any = None) -> None:
        if preview is not None:
            images.append((done, tuple(preview.shape)))
        original(progress, done, preview)

    monkeypatch.setattr(extension.progress.Progress, "at", at)
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "steps": 4}
    options = extension.run("TrainingOptions", preview_every=2, preview_steps=1).args[0]
    extension.run("TrainAnomalyEmbedding", name="shown", **values, options=options)
    # Four cells of 256 pixels in a row: image, mask, sample, curve.
    assert [done for done, _ in images] == [10, 12]
    assert all(shape == (3, 264, 1044) for _, shape in images)


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
    with pytest.raises(extension.errors.InputError, match="name: '../x'"):
        extension.run("TrainMaskEmbedding", dataset=dataset, name="../x", **values)
    good_only = tmp_path / "part" / "train" / "good"
    good_only.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(good_only / "0.png")
    normals = extension.load(folder=str(tmp_path)).args[0]
    with pytest.raises(extension.errors.InputError, match="part has no defect images"):
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
    config = extension.ldm._LdmConfig(architecture)
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


def test_memory_is_estimated_and_given_back(
    extension: Any, loaded: Any, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc

    import comfy.model_management as management

    loops = extension.module("anomalydiffusion_core.training.loop").TrainingLoop
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "seed": 9}
    result = extension.run("TrainAnomalyEmbedding", name="told", **values)
    assert "Estimated before: memory about " in result.args[2] and " MB activations" in result.args[2]
    del result
    gc.collect()
    assert not any(type(thing) is loops for thing in gc.get_objects()), "the training is gone with its tensors"
    with monkeypatch.context() as patch:
        patch.setattr(management, "get_free_memory", lambda *_: 1_000_000)
        with pytest.raises(extension.errors.InputError, match="needs about .* more, 1 MB are free .*Lower "):
            extension.run("TrainAnomalyEmbedding", name="large", **{**values, "seed": 10})
    assert extension.folders.model_files("anomalydiffusion").count("large_00001.safetensors") == 0


def test_compute_in_bfloat16_and_checkpointing_leave_the_model_as_it_was(
    extension: Any, loaded: Any, dataset: Any
) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "seed": 3}
    image, mask = torch.rand(1, 64, 64, 3), extension.box_mask()
    before = extension.state_of(loaded.model)

    def run(**options: Any) -> Any:
        chosen = extension.run("TrainingOptions", **options).args[0]
        return extension.run("TrainAnomalyEmbedding", name="format", **values, options=chosen).args[0]

    plain = run()
    sampled = extension.blend(loaded, plain, image, mask).args[0]
    (extension.folders.model_file("anomalydiffusion", "format_00001.safetensors")).unlink()
    twice = run(checkpointing=True)
    assert twice.metadata["losses"] == pytest.approx(plain.metadata["losses"], rel=1e-5)
    half = run(compute="bfloat16")
    assert half.metadata["content_key"] != plain.metadata["content_key"]
    losses = half.metadata["losses"]
    assert losses != plain.metadata["losses"] and losses == pytest.approx(plain.metadata["losses"], rel=0.05)
    assert all(rows.dtype is torch.float32 for rows in half.tokens.values())
    assert extension.state_of(loaded.model) == before
    assert not any("forward" in part.__dict__ for part in loaded.model.model.modules())
    assert torch.equal(extension.blend(loaded, plain, image, mask).args[0], sampled)
    with pytest.raises(extension.errors.InputError, match="the CPU cannot train in float16"):
        run(compute="float16")


def test_learning_rate_of_a_thousand_ends_or_stops_and_keeps_something(
    extension: Any, loaded: Any, dataset: Any
) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small}
    values |= {"steps": 6, "learning_rate": 1000.0, "name": "fast"}
    try:
        extension.run("TrainAnomalyEmbedding", **values)
    except extension.errors.TrainingError as error:
        assert "not finite at step" in str(error) and "saved as fast_00001" in str(error)
    kept = extension.run("LoadSpatialEncoder", bundle_name="fast_00001.safetensors").args[0]
    assert all(rows.isfinite().all() for rows in kept.tokens.values())


def test_deviation_of_the_latents_is_that_of_the_posterior(extension: Any) -> None:
    import comfy.sd

    torch.manual_seed(0)
    config = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    autoencoder = importlib.import_module("comfy.ldm.models.autoencoder").AutoencoderKL(ddconfig=config, embed_dim=4)
    weights = {name: torch.randn(value.shape) * 0.1 for name, value in autoencoder.state_dict().items()}
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": config, "embed_dim": 4}})
    loaded = SimpleNamespace(scale=0.5)
    model = SimpleNamespace(model=SimpleNamespace(process_latent_in=lambda x: x * loaded.scale), load_device="cpu")
    denoiser = object.__new__(extension.models.ComfyDenoiser)
    denoiser.model, denoiser.vae = model, vae
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        mean, deviation = denoiser.encode_moments(images)
        moments = vae.first_stage_model.encoder(images * 2 - 1)
        moments = vae.first_stage_model.quant_conv(moments)
    own_mean, logvar = moments.chunk(2, dim=1)
    torch.testing.assert_close(mean, own_mean * 0.5, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(deviation, (0.5 * logvar).exp() * 0.5, rtol=1e-3, atol=1e-3)


def test_tiny_autoencoder_has_no_posterior(extension: Any, loaded: Any, dataset: Any) -> None:
    options = extension.run("TrainingOptions", sample_latents=True).args[0]
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "options": options}
    with pytest.raises(extension.errors.InputError, match="sample latents: "):
        extension.run("TrainAnomalyEmbedding", name="posterior", **values)


def test_encoder_starts_from_a_file_in_its_model_folder(extension: Any, loaded: Any, dataset: Any) -> None:
    from torchvision.models import resnet50

    folder = Path(extension.folder_paths.models_dir) / "anomalydiffusion_backbones"
    folder.mkdir()
    torch.manual_seed(1)
    torch.save(resnet50(weights=None).state_dict(), folder / "resnet50.pth")
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, **extension.small, "name": "backbone"}
    values |= {"steps": 1, "batch_size": 1, "encoder": "resnet50_fpn", "encoder_weights": "resnet50.pth"}
    with pytest.raises(extension.errors.InputError, match="unknown file 'other.pth'. Choose one of: resnet50.pth"):
        extension.run("TrainAnomalyEmbedding", **{**values, "encoder_weights": "other.pth"})
    with pytest.raises(extension.errors.InputError, match="they are for the encoder resnet50_fpn, chosen is light"):
        extension.run("TrainAnomalyEmbedding", **{**values, "encoder": "light"})
    extension.run("TrainAnomalyEmbedding", **values)
    again = extension.run("LoadSpatialEncoder", bundle_name="backbone_00001.safetensors").args[0]
    assert again.spatial_encoder.variant == "resnet50_fpn_imagenet"
