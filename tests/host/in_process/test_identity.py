"""The identity of ComfyUI's MODEL: the same as without ComfyUI, with any LoRA, and on servers of other formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anomalydiffusion_core.backends.ldm import load_ldm
from anomalydiffusion_core.identity import Identity
from anomalydiffusion_core.server.client import WorkflowError, queue_workflow
from anomalydiffusion_core.server.process import Host, LocalServer, find_host
from anomalydiffusion_core.training.lora import Lora, adapted

ROOT = Path(__file__).resolve().parents[3]
UNET = "model.diffusion_model."


@pytest.fixture
def lora_file(extension: Any, prior: Path) -> Any:
    """A LoRA for the tiny prior in ComfyUI's folder of LoRAs."""
    folder = extension.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    made = Lora(load_ldm(prior).unet, 2)
    with torch.no_grad():
        for pair in made.pairs:
            pair.up.copy_(torch.randn(pair.up.shape, generator=torch.Generator().manual_seed(1)))
    path = folder / "normals_00001.safetensors"
    save_file(made.file_tensors(), path)
    names = extension.folder_paths.folder_names_and_paths
    before = names.get("loras")
    names["loras"] = ([str(folder)], {".safetensors"})
    extension.folder_paths.filename_list_cache.pop("loras", None)
    yield path
    path.unlink()
    names["loras"] = before
    extension.folder_paths.filename_list_cache.pop("loras", None)


def test_a_lora_of_the_stock_loader_is_the_one_of_the_command_line(
    extension: Any, stock: Any, loaded: Any, prior: Path, lora_file: Path
) -> None:
    (model,) = stock("LoraLoaderModelOnly", loaded.model, lora_file.name, 1.0)
    host, plain = extension.models.ComfyDenoiser(model, loaded.vae), load_ldm(prior)
    with adapted(plain, plain.unet, load_file(lora_file)):
        assert host.adaptation() == plain.adaptation() != ""
        assert host.fingerprint() == plain.fingerprint()
    (half,) = stock("LoraLoaderModelOnly", loaded.model, lora_file.name, 0.5)
    assert extension.models.ComfyDenoiser(half, loaded.vae).adaptation() not in ("", host.adaptation())
    assert extension.models.ComfyDenoiser(loaded.model, loaded.vae).adaptation() == ""


def test_a_bundle_of_an_adapted_model_asks_for_its_lora_and_load_spatial_encoder_applies_it(
    extension: Any, stock: Any, loaded: Any, dataset: Any, lora_file: Path
) -> None:
    (model,) = stock("LoraLoaderModelOnly", loaded.model, lora_file.name, 1.0)
    small = {**extension.small, "initial": loaded.normal, "name": "on_lora", "encoder": "light"}
    trained = extension.run("TrainAnomalyEmbedding", model=model, vae=loaded.vae, dataset=dataset, **small)
    bundle = trained.args[0]
    assert bundle.base.name == "normals_00001.safetensors" and bundle.base.adaptation.startswith("lora:")
    image, mask = torch.full((1, 64, 64, 3), 0.5), extension.box_mask()
    with pytest.raises(extension.errors.InputError, match=r"positive: .*normals_00001\.safetensors"):
        extension.blend(loaded, bundle, image, mask)
    name = trained.ui["bundle_file"][0]
    opened = extension.run("LoadSpatialEncoder", bundle_name=name, model=loaded.model)
    own, _, report, adapted_model = opened.args
    assert "trained with the LoRA normals_00001.safetensors" in report
    done = extension.blend(type(loaded)(**{**vars(loaded), "model": adapted_model}), own, image, mask)
    assert done.args[0].shape == (1, 64, 64, 3)
    # A model that has it already is passed on; without the file the error names it.
    assert extension.run("LoadSpatialEncoder", bundle_name=name, model=adapted_model).args[3] is adapted_model
    moved = lora_file.rename(lora_file.with_name("away.txt"))
    extension.folder_paths.filename_list_cache.pop("loras", None)
    with pytest.raises(extension.errors.InputError, match=r"model: .*normals_00001\.safetensors.*not in models/loras"):
        extension.run("LoadSpatialEncoder", bundle_name=name, model=loaded.model)
    moved.rename(lora_file)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--bf16-unet", "--fp16-unet"])
def test_servers_of_other_formats_know_the_model(extension: Any, diffusion: Any, tmp_path: Path, flag: str) -> None:
    for name in ("custom_nodes", "input", "output", "user", "temp", "models/checkpoints", "models/anomalydiffusion"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "custom_nodes" / "AnomalyDiffusion").symlink_to(ROOT, target_is_directory=True)
    # Single precision, with digits that neither half-precision format holds.
    weights = load_file(extension.base / "models" / "checkpoints" / "slim.safetensors")
    for name, value in weights.items():
        if name.startswith(UNET):
            weights[name] = value.float() * (1 + 1e-4 * torch.rand(value.shape))
    save_file(weights, tmp_path / "models" / "checkpoints" / "slim.safetensors")
    bundles = extension.module("anomalydiffusion_core.bundles.bundle")
    encoders = extension.module("anomalydiffusion_core.conditioning.spatial_encoder")
    own = extension.models.ComfyDenoiser(diffusion.model, diffusion.vae).fingerprint()
    encoder = encoders.build_spatial_encoder("light", 2, 768).eval().requires_grad_(False)
    for name, base in (("own", own), ("other", "2:0123456789abcdef")):
        metadata = {**Identity(base, "").metadata(), "settings": {"resolution": 64}}
        bundle = bundles.AnomalyBundle("anomaly", {"part/dot": torch.randn(2, 768) * 0.02}, encoder, metadata)
        bundle.save(tmp_path / "models" / "anomalydiffusion" / f"{name}.safetensors")

    def graph(name: str) -> dict[str, Any]:
        def node(kind: str, **inputs: Any) -> dict[str, Any]:
            return {"class_type": kind, "inputs": inputs}

        ours = "AnomalyDiffusion"
        sampling = {"seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        sampling["batch_size"] = 1
        sampling |= {"reweighting": "off", "strength": 0.0, "feather": 0}
        return {
            "1": node("CheckpointLoaderSimple", ckpt_name="slim.safetensors"),
            "2": node(f"{ours}LoadSpatialEncoder", bundle_name=f"{name}.safetensors"),
            "3": node("SolidMask", value=1.0, width=64, height=64),
            "4": node("EmptyImage", width=64, height=64, batch_size=1, color=0x808080),
            "5": node(f"{ours}SpatialAnomalyEmbedding", bundle=["2", 0], defect_type="part/dot", mask=["3", 0]),
            "6": node(
                f"{ours}BlendedAARKSampler",
                model=["1", 0],
                vae=["1", 2],
                positive=["5", 0],
                image=["4", 0],
                mask=["3", 0],
                **sampling,
            ),
            "7": node("PreviewImage", images=["6", 0]),
        }

    log = tmp_path / "log.txt"
    host = Host(find_host(ROOT).comfyui, tmp_path, sys.executable)
    with LocalServer(host, log_path=log, arguments=[flag], cpu=True, timeout=600) as server:
        assert queue_workflow(server.address, graph("own"), timeout=600).outputs["7"]["images"]
        with pytest.raises(WorkflowError, match="2:0123456789abcdef"):
            queue_workflow(server.address, graph("other"), timeout=600)
    kind = {"--bf16-unet": "torch.bfloat16", "--fp16-unet": "torch.float16"}[flag]
    assert f"model weight dtype {kind}" in log.read_text(encoding="utf-8")
