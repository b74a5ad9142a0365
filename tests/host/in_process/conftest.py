"""The extension inside this process, without a server: nodes are called as ComfyUI's executor calls them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import in_process
import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.backends.ldm_files import EPSILON
from anomalydiffusion_core.demo_prior.storing import store


class Extension:
    """The extension, imported as ComfyUI imports it, on folders of its own."""

    small = MappingProxyType({"steps": 2, "resolution": 64, "augmented_copies": 1, "batch_size": 2})

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder_paths = importlib.import_module("folder_paths")
        self.nodes = {node.define_schema().node_id: node for node in self.module("nodes").NODES}
        self.tensors = self.module("nodes.host.tensors")
        self.folders = self.module("nodes.host.folders")
        self.progress = self.module("nodes.host.progress")
        self.models = self.module("nodes.host.denoiser")
        self.ldm = self.module("nodes.host.ldm_files")
        self.sampling = self.module("nodes.host.sampler")
        self.conditioning = self.module("nodes.host.conditioning")
        self.core_sampler = self.module("anomalydiffusion_core.sampling.sampler")
        # Loaded a second time by the extension, so these are other classes than those of the installed package.
        self.errors = self.module("anomalydiffusion_core.errors")

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{in_process.PACKAGE}.{name}")

    def run(self, name: str, /, **values: Any) -> Any:
        """Execute a node as ComfyUI does, in inference mode, with the defaults of its schema."""
        node = self.nodes[f"AnomalyDiffusion{name}"]
        defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            return node.execute(**{**defaults, **values})

    def load(self, **values: Any) -> Any:
        """Load Anomaly Dataset on the images of the fixture ``data``."""
        chosen = {"folder": "few", "category": "part", "split": "first n", "train_count": 2, **values}
        return self.run("LoadDataset", **chosen)

    def blend(self, loaded: Any, bundle: Any, image: torch.Tensor, mask: torch.Tensor, **values: Any) -> Any:
        """Spatial Anomaly Embedding and Blended AAR KSampler in two steps, without guidance."""
        embed = {"bundle": bundle, "defect_type": "part/dot", "mask": mask}
        positive = values.pop("positive", None) or self.run("SpatialAnomalyEmbedding", **embed).args[0]
        chosen = {"steps": 2, "cfg": 1.0, "image": image, "mask": mask, **values}
        return self.run("BlendedAARKSampler", model=loaded.model, vae=loaded.vae, positive=positive, **chosen)

    def sample(
        self, denoiser: Any, latents: Any, cells: Any, positive: Any, negative: Any, settings: Any, weights: Any = None
    ) -> torch.Tensor:
        """Latents of ComfyUI's samplers; ``weights`` are ReweightingSettings."""
        weighting = None if weights is None else self.core_sampler.Weighting(weights)
        wrap = self.conditioning.ComfyConditioning.of
        with torch.inference_mode():
            made: torch.Tensor = self.sampling.ComfySampler(denoiser).sample(
                latents, cells, wrap(positive), wrap(negative), settings, self.progress.Progress(100), weighting
            )
        return made

    @staticmethod
    def encoded(loaded: Any, image: torch.Tensor) -> torch.Tensor:
        """What the stock node VAE Encode makes of images."""
        with torch.inference_mode():
            latents: torch.Tensor = loaded.vae.encode(image)
        return latents

    @staticmethod
    def state_of(model: Any) -> dict[str, tuple[int, bool, bool]]:
        """What may not change in a MODEL: the very parameters, and whether they are trained."""
        return {name: (id(p), p.requires_grad, p.is_inference()) for name, p in model.model.named_parameters()}

    @staticmethod
    def box_mask(count: int = 1, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
        """Masks [count, H, W] with one box each, every one in another place."""
        masks = torch.zeros(count, *size)
        for place in range(count):
            masks[place, 8 + 6 * place : 26 + 6 * place, 10:40] = 1
        return masks


@pytest.fixture(scope="session")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Extension:
    base = tmp_path_factory.mktemp("base")
    in_process.load_extension(base)
    return Extension(base)


@pytest.fixture(scope="session")
def prior(extension: Extension) -> Path:
    """A tiny model of random weights in the layout of the demo prior."""
    tiny = LdmDenoiser.random(0)
    path = extension.base / "models" / "anomalydiffusion_checkpoints" / "tiny.safetensors"
    store(path, tiny.autoencoder, tiny.unet, tiny.words, {}, EPSILON)
    return path


@pytest.fixture(scope="session")
def loaded(extension: Extension, prior: Path) -> Any:
    model, vae, empty, normal, _ = extension.run("LoadLDMCheckpoint", checkpoint=prior.name).args
    return SimpleNamespace(model=model, vae=vae, empty=empty, normal=normal)


@pytest.fixture(scope="session")
def stock(extension: Extension) -> Any:
    """ComfyUI's own nodes by class name."""
    return in_process.stock_nodes()


@pytest.fixture(scope="session")
def diffusion(extension: Extension, stock: Any) -> Any:
    """A slim Stable Diffusion 1.5 of random weights, loaded by the stock node Load Checkpoint."""
    model, clip, vae = in_process.slim_diffusion(stock)
    empty = stock("CLIPTextEncode", clip, "")[0]
    return SimpleNamespace(model=model, clip=clip, vae=vae, empty=empty)


@pytest.fixture(scope="session")
def clip_bundle(extension: Extension, diffusion: Any) -> Any:
    """A bundle whose tokens belong into a prompt for the slim model: 2 for its type, 2 for the place."""
    names = ("bundles.bundle", "conditioning.spatial_encoder")
    bundles, encoders = (extension.module(f"anomalydiffusion_core.{name}") for name in names)
    generator = torch.Generator().manual_seed(8)
    torch.manual_seed(8)
    encoder = encoders.build_spatial_encoder("light", 2, 768).eval().requires_grad_(False)
    metadata = {
        "token_route": "clip",
        "template": "a photo of a *",
        "base_fingerprint": extension.models.ComfyDenoiser(diffusion.model, diffusion.vae).fingerprint(),
        "settings": {"resolution": 64},
    }
    tokens = {"part/dot": torch.randn(2, 768, generator=generator) * 0.02}
    return bundles.AnomalyBundle("anomaly", tokens, encoder, metadata)


@pytest.fixture(scope="session")
def data(extension: Extension) -> Path:
    """Grey images of 64 px with blue squares and yellow bars: 2 training and 2 test pairs of each type."""
    root = extension.base / "input" / "few"
    rng = np.random.default_rng(0)

    def save(pixels: np.ndarray, *parts: str) -> None:
        path = root.joinpath("part", *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def plain() -> np.ndarray:
        return (120 + rng.normal(0, 6, (64, 64, 3))).clip(0, 255).astype(np.uint8)

    for split in ("train", "test"):
        for number in range(3):
            save(plain(), split, "good", f"{number:03d}.png")
    for defect, (height, width), colour in (("dot", (12, 12), (30, 30, 160)), ("bar", (4, 24), (230, 230, 60))):
        for number in range(4):
            image, mask = plain(), np.zeros((64, 64), np.uint8)
            top, left = rng.integers(4, 36, 2)
            mask[top : top + height, left : left + width] = 255
            image[mask > 0] = colour
            save(image, "test", defect, f"{number:03d}.png")
            save(mask, "ground_truth", defect, f"{number:03d}_mask.png")
    return root


@pytest.fixture(scope="session")
def dataset(extension: Extension, data: Path) -> Any:
    return extension.load().args[0]


@pytest.fixture(scope="session")
def bundle(extension: Extension, loaded: Any, dataset: Any) -> Any:
    trained = extension.run(
        "TrainAnomalyEmbedding",
        model=loaded.model,
        vae=loaded.vae,
        dataset=dataset,
        initial=loaded.normal,
        name="shared",
        **extension.small,
    )
    return trained.args[0]


@pytest.fixture(scope="session")
def mask_bundle(extension: Extension, loaded: Any, dataset: Any) -> Any:
    trained = extension.run(
        "TrainMaskEmbedding", model=loaded.model, vae=loaded.vae, dataset=dataset, name="masks", **extension.small
    )
    return trained.args[0]
