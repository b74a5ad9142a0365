"""Adapt to Normals: an ordinary LoRA file, the same MODEL as the stock loader makes of it, and the input unchanged."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

SMALL = {"steps": 3, "batch_size": 2, "rank": 2, "resolution": 64, "pictures": 2, "control_samples": 1}


def digest(model: Any) -> str:
    """All numbers of a model's weights, as they are when nothing is applied."""
    model.unpatch_model()
    total = hashlib.sha256()
    for name, value in sorted(model.model.state_dict().items()):
        total.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@pytest.fixture
def loras(extension: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's loras folder, an empty one of its own."""
    path = tmp_path / "loras"
    path.mkdir()
    known = dict(extension.folder_paths.folder_names_and_paths)
    known["loras"] = ([str(path)], known["loras"][1])
    monkeypatch.setattr(extension.folder_paths, "folder_names_and_paths", known)
    extension.folder_paths.filename_list_cache.pop("loras", None)
    yield path
    extension.folder_paths.filename_list_cache.pop("loras", None)


def adapt(extension: Any, loaded: Any, dataset: Any, **values: Any) -> Any:
    chosen = {"normal": loaded.normal, "name": "bottle", **SMALL, **values}
    return extension.run("AdaptToNormals", model=loaded.model, vae=loaded.vae, dataset=dataset, **chosen)


def predict(extension: Any, model: Any, loaded: Any) -> torch.Tensor:
    denoiser = extension.models.ComfyDenoiser(model, loaded.vae)
    generator = torch.Generator().manual_seed(3)
    x, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([400])
    with torch.inference_mode():
        noise: torch.Tensor = denoiser.predict_noise(x, t, loaded.normal[0][0])
    return noise.clone()


def record(path: Path) -> str:
    with safe_open(path, framework="pt") as stored:
        return str(stored.metadata()["anomalydiffusion"])


def test_stock_loader_makes_the_same_model_and_the_input_is_unchanged(
    extension: Any, stock: Any, loaded: Any, dataset: Any, loras: Path
) -> None:
    before, plain = digest(loaded.model), predict(extension, loaded.model, loaded)
    out = adapt(extension, loaded, dataset, steps=20)
    model, curve, report = out.args
    assert curve.ndim == 4 and out.ui["lora_file"] == ["bottle_00001.safetensors"]
    assert re.search(r"20 steps, .*2 normal images\. Control .*: \d+\.\d before, \d+\.\d after\.", report, re.DOTALL)
    assert extension.folder_paths.get_filename_list("loras") == ["bottle_00001.safetensors"], "listed at once"
    adapted = predict(extension, model, loaded)
    by_stock = stock("LoraLoaderModelOnly", loaded.model, "bottle_00001.safetensors", 1.0)[0]
    assert torch.equal(predict(extension, by_stock, loaded), adapted)
    assert not torch.allclose(adapted, plain, atol=1e-4)
    assert torch.equal(predict(extension, loaded.model, loaded), plain)
    assert digest(loaded.model) == before
    # No layer is lost on the way: three entries for each, and the host maps every one of them.
    tensors = load_file(loras / "bottle_00001.safetensors")
    layers = {name.split(".")[0] for name in tensors}
    assert len(tensors) == 3 * len(layers) and len(by_stock.patches) == len(layers)


def test_same_inputs_are_not_trained_twice(extension: Any, loaded: Any, dataset: Any, loras: Path) -> None:
    first = adapt(extension, loaded, dataset)
    again = adapt(extension, loaded, dataset)
    assert "loaded" in again.args[2] and [path.name for path in loras.iterdir()] == ["bottle_00001.safetensors"]
    assert again.args[2].splitlines()[1] == first.args[2].splitlines()[1], "the control is remembered"
    outcome = [predict(extension, run.args[0], loaded) for run in (first, again)]
    assert torch.equal(*outcome)
    content = (loras / "bottle_00001.safetensors").read_bytes()
    (loras / "bottle_00001.safetensors").unlink()
    adapt(extension, loaded, dataset)
    assert (loras / "bottle_00001.safetensors").read_bytes() == content
    adapt(extension, loaded, dataset, seed=1, control_samples=0)
    assert len(list(loras.iterdir())) == 2 and '"control_before": null' in record(loras / "bottle_00002.safetensors")


def test_cancel_keeps_what_was_learned(
    extension: Any, loaded: Any, dataset: Any, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    state, original, steps = extension.state_of(loaded.model), extension.progress.Progress.at, []

    def at(progress: Any, done: int, preview: Any = None) -> None:
        steps.append(done)
        if done == 2 + 4:
            management.interrupt_current_processing(True)
        original(progress, done, preview)

    monkeypatch.setattr(extension.progress.Progress, "at", at)
    with pytest.raises(management.InterruptProcessingException):
        adapt(extension, loaded, dataset, steps=50, control_samples=0)
    assert steps[-1] == 6, "two encoded images, then the fourth step"
    assert '"stopped_at_step": 4' in record(loras / "bottle_00001.safetensors")
    assert extension.state_of(loaded.model) == state
    assert not any(part._forward_hooks for part in loaded.model.model.modules())
    monkeypatch.setattr(extension.progress.Progress, "at", original)
    adapt(extension, loaded, dataset, control_samples=0)
    assert sorted(path.name for path in loras.iterdir()) == ["bottle_00001.safetensors", "bottle_00002.safetensors"]


def test_bad_input_is_refused_before_anything_is_trained(
    extension: Any, loaded: Any, diffusion: Any, dataset: Any, loras: Path
) -> None:
    errors = extension.errors
    with pytest.raises(errors.TrainingError, match=r"not finite at step .*saved as wild_00001"):
        adapt(extension, loaded, dataset, name="wild", learning_rate=1e30, steps=30, control_samples=0)
    tensors = load_file(loras / "wild_00001.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    with pytest.raises(errors.InputError, match="normal: its width is 768"):
        adapt(extension, loaded, dataset, normal=diffusion.empty)
    with pytest.raises(errors.InputError, match="negative: its width is 768"):
        adapt(extension, loaded, dataset, negative=diffusion.empty)
    with pytest.raises(errors.InputError, match="name: '../x'"):
        adapt(extension, loaded, dataset, name="../x")
    for name in ("steps", "batch_size", "learning_rate", "rank"):
        with pytest.raises(errors.InputError, match=name):
            adapt(extension, loaded, dataset, **{name: 0})
    assert [path.name for path in loras.iterdir()] == ["wild_00001.safetensors"]


def test_stable_diffusion_from_the_stock_loader(
    extension: Any, stock: Any, diffusion: Any, dataset: Any, loras: Path
) -> None:
    before = digest(diffusion.model)
    values = {"steps": 2, "batch_size": 1, "rank": 1, "resolution": 64, "pictures": 1, "control_samples": 0}
    loaded = SimpleNamespace(model=diffusion.model, vae=diffusion.vae, normal=diffusion.empty)
    model = adapt(extension, loaded, dataset, learning_rate=1e-3, **values).args[0]
    by_stock, _ = stock("LoraLoader", diffusion.model, diffusion.clip, "bottle_00001.safetensors", 1.0, 1.0)
    assert len(by_stock.patches) == len(model.patches) == len(load_file(loras / "bottle_00001.safetensors")) / 3
    assert torch.equal(predict(extension, by_stock, loaded), predict(extension, model, loaded))
    assert digest(diffusion.model) == before


@pytest.mark.slow
def test_control_on_real_bottles_falls_to_a_third(
    extension: Any, loras: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo prior does not know bottles: under the normal caption it changes a mask as much as under any other."""
    model, vae, empty, normal, _ = extension.run("LoadLDMCheckpoint", checkpoint="demo_prior.safetensors").args
    dataset = extension.load(folder=str(shared_data), category="bottle", split="lowest third").args[0]
    report = extension.run(
        "AdaptToNormals", model=model, vae=vae, dataset=dataset, normal=normal, negative=empty, name="bottle"
    )
    before, after = (float(text) for text in re.findall(r"(\d+\.\d) (?:before|after)", report.args[2]))
    assert before > 20 and after <= before / 3
    # The sampler's own control, on good images of the test and masks of real defects.
    from anomalydiffusion_core.data.mvtec import load_images, load_pairs

    good = sorted((shared_data / "bottle" / "test" / "good").iterdir())[:4]
    pairs = [kind.test[0] for kind in dataset.types] + [dataset.types[0].test[1]]
    image = load_images(good, 256, 8).movedim(1, -1)
    mask = load_pairs(pairs, 256)[1][:, 0]
    values = {"vae": vae, "image": image, "mask": mask, "positive": normal, "negative": empty}
    effects = []
    for drawn in (model, report.args[0]):
        records = extension.run(
            "BlendedAARKSampler", model=drawn, steps=16, cfg=2.5, reweighting="off", seed=5, **values
        ).args[3]
        effects.append(sum(entry["effect_score"] for entry in records) / len(records))
    assert effects[0] > 20 and effects[1] <= effects[0] / 3
