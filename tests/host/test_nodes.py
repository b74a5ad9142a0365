"""The nodes and their adapter inside this process: schemas, help pages, and the rules each node keeps."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.hosting import find_host
from anomalydiffusion_core.reweighting import MODES, AttentionGain

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "anomalydiffusion_extension"
NAMES = {
    "LoadLDMCheckpoint": "Load LDM Checkpoint",
    "LoadDataset": "Load Anomaly Dataset",
    "PickNormals": "Pick Normals",
    "TrainAnomalyEmbedding": "Train Anomaly Embedding",
    "TrainMaskEmbedding": "Train Mask Embedding",
    "LoadSpatialEncoder": "Load Spatial Encoder",
    "SpatialAnomalyEmbedding": "Spatial Anomaly Embedding",
    "MaskEmbeddingSampler": "Mask Embedding Sampler",
    "BlendedAARKSampler": "Blended AAR KSampler",
    "ExportPairs": "Export Pairs",
    "EvaluateLocalization": "Evaluate Localization",
}
IDS = [f"AnomalyDiffusion{name}" for name in NAMES]
SMALL = {"steps": 2, "resolution": 64, "augmented_copies": 1, "batch_size": 2}


class Extension:
    """The extension, imported as ComfyUI imports it, on folders of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder_paths = importlib.import_module("folder_paths")
        self.nodes = {node.define_schema().node_id: node for node in self.module("nodes").NODES}
        self.host = self.module("nodes.host")
        self.models = self.module("nodes.host_models")
        self.sampling = self.module("nodes.host_sampling")
        # Loaded a second time by the extension, so these are other classes than those of the installed package.
        self.errors = self.module("anomalydiffusion_core.errors")

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{PACKAGE}.{name}")

    def run(self, name: str, **values: Any) -> Any:
        """Execute a node as ComfyUI does, in inference mode, with the defaults of its schema."""
        node = self.nodes[f"AnomalyDiffusion{name}"]
        defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            return node.execute(**{**defaults, **values})


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extension]:
    base = tmp_path_factory.mktemp("base")
    path, modules = list(sys.path), set(sys.modules)
    sys.path.append(str(find_host(ROOT).comfyui))
    importlib.import_module("comfy.cli_args").args.cpu = True
    folder_paths = importlib.import_module("folder_paths")
    for name in ("models", "output", "input", "temp"):
        (base / name).mkdir()
    folder_paths.models_dir = str(base / "models")
    folder_paths.set_output_directory(str(base / "output"))
    folder_paths.set_input_directory(str(base / "input"))
    folder_paths.set_temp_directory(str(base / "temp"))
    spec = importlib.util.spec_from_file_location(
        PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    made = Extension(base)
    made.host.register_model_folders()
    yield made
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("nodes", "utils", "server", "execution", "app"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def prior(extension: Extension) -> Path:
    """A tiny model of random weights in the layout of the demo prior."""
    tiny = LdmDenoiser.random(0)
    path = extension.base / "models" / "anomalydiffusion_checkpoints" / "tiny.safetensors"
    store(path, tiny.autoencoder, tiny.unet, tiny.words, {})
    return path


@pytest.fixture(scope="module")
def loaded(extension: Extension, prior: Path) -> Any:
    model, vae, empty, normal = extension.run("LoadLDMCheckpoint", checkpoint=prior.name).args
    return SimpleNamespace(model=model, vae=vae, empty=empty, normal=normal)


@pytest.fixture(scope="module")
def data(extension: Extension) -> Path:
    """Grey pictures of 64 px with blue squares and yellow bars: 2 training and 2 test pairs of each type."""
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
            picture, mask = plain(), np.zeros((64, 64), np.uint8)
            top, left = rng.integers(4, 36, 2)
            mask[top : top + height, left : left + width] = 255
            picture[mask > 0] = colour
            save(picture, "test", defect, f"{number:03d}.png")
            save(mask, "ground_truth", defect, f"{number:03d}_mask.png")
    return root


@pytest.fixture(scope="module")
def dataset(extension: Extension, data: Path) -> Any:
    return load(extension).args[0]


def load(extension: Extension, **values: Any) -> Any:
    chosen = {"folder": "few", "category": "part", "split": "first n", "train_count": 2, **values}
    return extension.run("LoadDataset", **chosen)


@pytest.fixture(scope="module")
def bundle(extension: Extension, loaded: Any, dataset: Any) -> Any:
    trained = extension.run(
        "TrainAnomalyEmbedding",
        model=loaded.model,
        vae=loaded.vae,
        dataset=dataset,
        initial=loaded.normal,
        name="shared",
        **SMALL,
    )
    return trained.args[0]


@pytest.fixture(scope="module")
def mask_bundle(extension: Extension, loaded: Any, dataset: Any) -> Any:
    trained = extension.run(
        "TrainMaskEmbedding", model=loaded.model, vae=loaded.vae, dataset=dataset, name="masks", **SMALL
    )
    return trained.args[0]


def box_mask(count: int = 1, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """Masks [count, H, W] with one box each, every one in another place."""
    masks = torch.zeros(count, *size)
    for place in range(count):
        masks[place, 8 + 6 * place : 26 + 6 * place, 10:40] = 1
    return masks


# Schemas, help and translations


@pytest.mark.parametrize("node_id", IDS)
def test_schema_is_complete(extension: Extension, node_id: str) -> None:
    schema = extension.nodes[node_id].define_schema()
    schema.finalize()
    schema.validate()
    assert schema.display_name == NAMES[node_id.removeprefix("AnomalyDiffusion")]
    assert schema.category.startswith("AnomalyDiffusion/")
    assert schema.description.endswith(".")
    for part in (*schema.inputs, *schema.outputs):
        assert part.id and part.tooltip and part.tooltip.endswith("."), part.id
        assert part.tooltip.isascii()
    for output in schema.outputs:
        assert output.display_name
    # ComfyUI's oldest supported version writes this for the page.
    assert extension.nodes[node_id].GET_NODE_INFO_V1()["name"] == node_id


def test_there_are_these_nodes_and_no_others(extension: Extension) -> None:
    assert sorted(extension.nodes) == sorted(IDS)


@pytest.mark.parametrize("node_id", IDS)
def test_help_page_names_every_input_and_output(extension: Extension, node_id: str) -> None:
    schema = extension.nodes[node_id].define_schema()
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    for part in schema.inputs:
        assert f"| `{part.id}` | " in page and part.tooltip in page, part.id
    for part in schema.outputs:
        assert f"| {part.display_name} | {part.tooltip} |" in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_translations_are_complete(extension: Extension, language: str) -> None:
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert sorted(texts) == sorted(IDS)
    for node_id, node in extension.nodes.items():
        schema, entry = node.define_schema(), texts[node_id]
        assert list(entry["inputs"]) == [part.id for part in schema.inputs]
        assert list(entry["outputs"]) == [str(place) for place in range(len(schema.outputs))]
        words = [entry["display_name"], entry["description"]]
        words += [part["tooltip"] for part in (*entry["inputs"].values(), *entry["outputs"].values())]
        if language == "en":
            tooltips = [part.tooltip for part in (*schema.inputs, *schema.outputs)]
            assert words == [schema.display_name, schema.description, *tooltips]
        else:
            assert all(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in words), words


# Tensors and folders


def test_pictures_and_masks_survive_the_way_to_the_core_and_back(extension: Extension) -> None:
    picture = torch.rand(2, 5, 7, 4)
    core = extension.host.to_core_images(picture)
    assert core.shape == (2, 3, 5, 7)
    assert torch.equal(extension.host.to_host_images(core), picture[..., :3])
    mask = torch.zeros(2, 5, 7)
    mask[0, 1, 1], mask[1, 2, 3], mask[1, 0, 0] = 1.0, 236 / 255, 0.4
    masks = extension.host.to_core_masks(mask)
    assert masks.shape == (2, 1, 5, 7)
    assert masks.sum() == 2 and masks[1, 0, 2, 3] == 1
    with torch.inference_mode():
        made_inside = torch.rand(1, 8, 8, 3)
    assert not extension.host.to_core_images(made_inside).is_inference()


def test_empty_mask_is_named(extension: Extension) -> None:
    masks = torch.zeros(3, 8, 8)
    masks[0] = masks[2] = 1
    with pytest.raises(extension.errors.InputError, match=r"entry 1 of 3 is empty \(nothing is marked\)"):
        extension.host.to_core_masks(masks)
    with pytest.raises(extension.errors.InputError, match=r"largest value is 0\.30"):
        extension.host.to_core_masks(torch.full((1, 8, 8), 0.3))


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "..\\b", "C:\\x", "", " ", "link/x"])
def test_writing_outside_of_the_folder_is_refused(extension: Extension, tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(extension.errors.InputError, match="folder: "):
        extension.host.contained(root, name, "folder")
    assert extension.host.contained(root, "a\\b", "folder") == root / "a" / "b"


def test_output_folders_are_numbered_on_and_never_half_written(extension: Extension) -> None:
    host = extension.host
    root = host.output_root()
    (root / "sub" / "set_00007").mkdir(parents=True)
    with host.new_output_folder("sub/set") as (draft, final):
        (draft / "a.txt").write_text("a")
        assert final == root / "sub" / "set_00008" and not final.exists()
    assert (final / "a.txt").read_text() == "a"
    with pytest.raises(KeyboardInterrupt), host.new_output_folder("sub/set") as (draft, _):
        (draft / "b.txt").write_text("b")
        raise KeyboardInterrupt
    assert sorted(path.name for path in (root / "sub").iterdir()) == ["set_00007", "set_00008"]


def test_model_folders_keep_what_the_user_configured(extension: Extension, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"anomalydiffusion": (["/data/bundles"], {".sft"})}
    monkeypatch.setattr(extension.folder_paths, "folder_names_and_paths", known)
    extension.host.register_model_folders()
    extension.host.register_model_folders()
    models = extension.folder_paths.models_dir
    paths, extensions = known["anomalydiffusion"]
    assert paths == ["/data/bundles", str(Path(models) / "anomalydiffusion")]
    assert extensions == {".sft", ".safetensors"}
    assert str(ROOT / "models") in known["anomalydiffusion_checkpoints"][0]


def test_unknown_files_are_refused_with_a_list(extension: Extension, prior: Path) -> None:
    with pytest.raises(extension.errors.InputError, match=r"there is no '\.\./tiny.safetensors'.*tiny\.safetensors"):
        extension.run("LoadLDMCheckpoint", checkpoint="../tiny.safetensors")


# The adapter to the model


def test_the_host_computes_what_the_plain_backend_computes(extension: Extension, loaded: Any, prior: Path) -> None:
    ours, plain = extension.models.ComfyDenoiser(loaded.model, loaded.vae), load_ldm(prior)
    torch.testing.assert_close(ours.alphas_cumprod, plain.alphas_cumprod, rtol=0, atol=1e-6)
    assert (ours.context_width, ours.latent_channels, ours.downscale) == (128, 4, 8)
    assert ours.fingerprint() == plain.fingerprint()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 48, 64, generator=generator)
    latents = ours.encode(images)
    torch.testing.assert_close(latents, plain.encode(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.decode(latents), plain.decode(latents), rtol=0, atol=1e-5)
    context, t = torch.randn(2, 6, 128, generator=generator), torch.tensor([2, 871])
    with torch.no_grad():
        expected = plain.predict_noise(latents, t, context)
        torch.testing.assert_close(ours.predict_noise(latents, t, context), expected, rtol=0, atol=1e-4)
        for on_logits in (False, True):
            weights = 1 + torch.rand(2, 6, 8, generator=generator)
            gain = AttentionGain(weights, torch.arange(6) < 4, on_logits)
            weighted = plain.predict_noise(latents, t, context, gain)
            assert (weighted - expected).abs().max() > 1e-3
            measured = ours.predict_noise(latents, t, context, gain)
            torch.testing.assert_close(measured, weighted, rtol=0, atol=1e-4)
    # captions of the file
    torch.testing.assert_close(loaded.empty[0][0], plain.empty_context, rtol=0, atol=0)
    torch.testing.assert_close(loaded.normal[0][0], plain.normal_context, rtol=0, atol=0)


def test_velocity_models_give_their_noise(extension: Extension, loaded: Any) -> None:
    import comfy.model_sampling  # type: ignore[import-not-found,unused-ignore]

    class Velocity(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):  # type: ignore
        pass

    model = loaded.model.clone()
    model.add_object_patch("model_sampling", Velocity(model.model.model_config))
    ours = extension.models.ComfyDenoiser(model, loaded.vae)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 5, 128)
    with torch.no_grad():
        eps = ours.predict_noise(x, t, context)
        velocity = model.model.diffusion_model(x, t.float(), context=context)
    alpha = ours.alphas_cumprod[400]
    # v = sqrt(alpha) eps - sqrt(1 - alpha) x_0 and x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) eps
    torch.testing.assert_close(eps, alpha.sqrt() * velocity + (1 - alpha).sqrt() * x, rtol=1e-4, atol=1e-5)
    model.unpatch_model()


def state_of(model: Any) -> dict[str, tuple[int, bool, bool]]:
    return {name: (id(p), p.requires_grad, p.is_inference()) for name, p in model.model.named_parameters()}


def test_training_mode_gives_gradients_and_puts_everything_back(
    extension: Extension, loaded: Any, prior: Path
) -> None:
    ours, plain = extension.models.ComfyDenoiser(loaded.model, loaded.vae), load_ldm(prior)
    before = state_of(loaded.model)
    assert {inference for _, _, inference in before.values()} == {True}, "loader nodes run in inference mode"
    weights = {name: value.clone() for name, value in loaded.model.model.state_dict().items()}
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([30, 700]), torch.randn(2, 6, 128)

    def gradient(denoiser: Any) -> torch.Tensor:
        own = context.clone().requires_grad_()
        denoiser.predict_noise(x, t, own).square().mean().backward()
        assert own.grad is not None
        return own.grad

    with torch.inference_mode():
        with ours.training_mode():
            assert not any(p.requires_grad for p in loaded.model.model.parameters())
            measured = gradient(ours)
        with pytest.raises(KeyboardInterrupt), ours.training_mode():
            raise KeyboardInterrupt
    expected = gradient(plain)
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-8)
    assert state_of(loaded.model) == before
    for name, value in loaded.model.model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert loaded.model.model_options == {"transformer_options": {}}


def test_models_that_do_not_fit_are_refused_with_both_values(
    extension: Extension, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    with pytest.raises(extension.errors.InputError, match="its width is 768, the model's context has 128"):
        denoiser.check_width(768, "positive")
    with monkeypatch.context() as patch:
        patch.setattr(loaded.vae, "latent_channels", 16)
        with pytest.raises(extension.errors.InputError, match="makes 16 latent channels.*the model takes 4"):
            extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    with monkeypatch.context() as patch:
        patch.setattr(loaded.model.model, "adm_channels", 2816)
        with pytest.raises(extension.errors.InputError, match="needs 2816 pooled text channels"):
            extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    import comfy.model_sampling  # type: ignore[import-not-found,unused-ignore]

    class Flow(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):  # type: ignore
        pass

    model = loaded.model.clone()
    model.add_object_patch("model_sampling", Flow())
    with pytest.raises(extension.errors.InputError, match="ModelSamplingFlux, CONST"):
        extension.models.ComfyDenoiser(model, loaded.vae)


# Sampling


def sample(extension: Extension, loaded: Any, positive: Any, seed: int = 5, **values: Any) -> torch.Tensor:
    """Two samples of 64 px inside two boxes, or the chosen ones of them."""
    chosen = values.pop("chosen", slice(None))
    reweighting = values.pop("reweighting", None)
    model = values.pop("model", loaded.model)
    settings = extension.sampling.SamplingSettings(seed, 3, values.pop("cfg", 2.0), **values)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)[chosen]
    cells = torch.zeros(2, 1, 8, 8)
    cells[0, :, 2:6, 2:6] = cells[1, :, 4:, 1:7] = 1
    denoiser = extension.models.ComfyDenoiser(model, loaded.vae)
    with torch.inference_mode():
        return extension.sampling.sample_latents(
            denoiser,
            latents,
            cells[chosen],
            positive,
            loaded.empty,
            settings,
            extension.host.Progress(100),
            reweighting,
        )


def two_rows(extension: Extension, rows: slice = slice(None)) -> Any:
    context = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(3))
    return extension.models.to_conditioning(context[rows], torch.arange(6) < 4)


def settings_of(extension: Extension, **values: Any) -> Any:
    return extension.module("anomalydiffusion_core.reweighting").ReweightingSettings(**values)


def test_every_sampler_draws_a_sample_as_if_it_were_alone(extension: Extension, loaded: Any) -> None:
    for name in extension.sampling.SAMPLERS:
        both = sample(extension, loaded, two_rows(extension), sampler_name=name)
        second = slice(1, None)
        alone = sample(extension, loaded, two_rows(extension, second), seed=6, sampler_name=name, chosen=second)
        scale = float(alone.abs().max())
        assert scale > 1, name
        assert float((both[1] - alone[0]).abs().max()) < 1e-4 * scale, name


def test_unmasked_sampling_equals_the_stock_sampler(extension: Extension, loaded: Any) -> None:
    import comfy.sample  # type: ignore[import-not-found,unused-ignore]

    latents = torch.randn(1, 4, 8, 8)
    positive = two_rows(extension, slice(1))
    settings = extension.sampling.SamplingSettings(9, 4, 3.0, "dpmpp_2m", "karras")
    denoiser = extension.models.ComfyDenoiser(loaded.model, loaded.vae)
    with torch.inference_mode():
        ours = extension.sampling.sample_latents(
            denoiser, latents, torch.ones(1, 1, 8, 8), positive, loaded.empty, settings, extension.host.Progress(4)
        )
        stock = comfy.sample.sample(
            loaded.model,
            comfy.sample.prepare_noise(latents, 9),
            4,
            3.0,
            "dpmpp_2m",
            "karras",
            positive,
            loaded.empty,
            latents,
            seed=9,
            disable_pbar=True,
        )
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("mode", MODES)
def test_reweighting_acts_repeats_and_can_be_switched_off(extension: Extension, loaded: Any, mode: str) -> None:
    plain = sample(extension, loaded, two_rows(extension))
    off = sample(extension, loaded, two_rows(extension), reweighting=settings_of(extension, mode=mode, strength=0.0))
    assert torch.equal(off, plain)
    first, again = (
        sample(extension, loaded, two_rows(extension), reweighting=settings_of(extension, mode=mode)) for _ in range(2)
    )
    assert (first - plain).abs().max() > 1e-3
    assert torch.equal(first, again)
    # no trace is left in the model that went in
    assert torch.equal(sample(extension, loaded, two_rows(extension)), plain)
    assert loaded.model.model_options == {"transformer_options": {}}
    second = slice(1, None)
    alone = sample(
        extension,
        loaded,
        two_rows(extension, second),
        seed=6,
        chosen=second,
        reweighting=settings_of(extension, mode=mode),
    )
    torch.testing.assert_close(first[1], alone[0], rtol=0, atol=1e-2)


def test_only_the_positive_half_is_reweighted(extension: Extension, loaded: Any) -> None:
    source = extension.sampling._SamplingGain(SimpleNamespace(), 2)
    positive, other = object(), object()
    source._columns = {positive: torch.tensor([True, False, False])}
    source._current = extension.module("anomalydiffusion_core.reweighting").AttentionGain(
        torch.full((2, 4, 4), 1.5), torch.zeros(1, dtype=torch.bool)
    )
    # two negatives come first; one of them is the host's copy of the positive entry, under the same id
    options = {"cond_or_uncond": [1, 1, 0], "uuids": [other, positive, positive]}
    gain = source.gain(6, options)
    assert gain.weights[:4].eq(1).all() and gain.weights[4:].eq(1.5).all()
    assert not gain.columns[:4].any()
    assert gain.columns[4:].tolist() == [[True, False, False, True, False, False]] * 2


def test_a_patch_that_was_there_before_stays_in_force(extension: Extension, loaded: Any) -> None:
    from comfy.ldm.modules.attention import optimized_attention  # type: ignore[import-not-found,unused-ignore]

    def doubling(q: Any, k: Any, v: Any, extra: Any) -> Any:
        return 2 * optimized_attention(q, k, v, extra["n_heads"])

    model = loaded.model.clone()
    for name, number in (("input", 2), ("middle", 0), ("output", 0), ("output", 1)):
        model.set_model_attn2_replace(doubling, name, number)
    positive = two_rows(extension)
    patched = sample(extension, loaded, positive, model=model)
    assert not torch.equal(patched, sample(extension, loaded, positive))
    tiny = settings_of(extension, strength=1e-6)
    nearly = sample(extension, loaded, positive, model=model, reweighting=tiny)
    torch.testing.assert_close(nearly, patched, rtol=0, atol=1e-2)
    full = sample(extension, loaded, positive, model=model, reweighting=settings_of(extension))
    assert (full - patched).abs().max() > 1e-2


def blend(extension: Extension, loaded: Any, bundle: Any, image: torch.Tensor, mask: torch.Tensor, **more: Any) -> Any:
    positive = extension.run("SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/dot", mask=mask).args[0]
    values = {"steps": 2, "cfg": 1.0, "image": image, "mask": mask, **more}
    return extension.run("BlendedAARKSampler", model=loaded.model, vae=loaded.vae, positive=positive, **values)


@pytest.mark.parametrize("height,width", [(64, 64), (50, 83), (41, 32)])
def test_outside_of_the_mask_nothing_changes_at_any_size(
    extension: Extension, loaded: Any, bundle: Any, height: int, width: int
) -> None:
    image = torch.rand(1, height, width, 3)
    mask = torch.zeros(2, height, width)
    mask[0, 10:30, 5:20] = 1
    mask[1, 7, 9] = 1  # one pixel still makes a defect
    images, masks, latent, effects, report = blend(extension, loaded, bundle, image, mask).args
    assert images.shape == (2, height, width, 3)
    assert torch.equal(masks, mask)
    outside = (mask == 0)[..., None].expand_as(images)
    assert torch.equal(images[outside], image.expand_as(images)[outside])
    assert (images - image).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert latent["samples"].shape == (2, 4, -(-height // 8), -(-width // 8))
    assert [entry["seed"] for entry in effects] == [0, 1]
    assert all(entry["outside_max_abs_diff"] == 0 and entry["effect_score"] > 0 for entry in effects)
    assert "2 samples" in report


def test_batches_of_pictures_and_masks(extension: Extension, loaded: Any, bundle: Any) -> None:
    pictures = torch.rand(3, 64, 64, 3)
    assert len(blend(extension, loaded, bundle, pictures, box_mask()).args[0]) == 3
    assert len(blend(extension, loaded, bundle, pictures[:1], box_mask(3)).args[0]) == 3
    all_three = blend(extension, loaded, bundle, pictures, box_mask(3), batch_size=2).args[0]
    last = blend(extension, loaded, bundle, pictures[2:], box_mask(3)[2:], seed=2).args[0]
    torch.testing.assert_close(all_three[2:], last, rtol=0, atol=1e-4)
    with pytest.raises(extension.errors.InputError, match="3 pictures and 2 masks"):
        blend(extension, loaded, bundle, pictures, box_mask(2))


def test_sizes_of_masks(extension: Extension, loaded: Any, bundle: Any) -> None:
    image = torch.rand(1, 64, 96, 3)
    result = blend(extension, loaded, bundle, image, box_mask(size=(32, 48)))
    assert result.args[1].shape == (1, 64, 96)
    assert "the mask is 48x32 px, the image 96x64 px" in result.args[4]
    with pytest.raises(extension.errors.InputError, match="64x64 px, the image 96x64 px"):
        blend(extension, loaded, bundle, image, box_mask())


def test_control_is_reported_beside_the_effect(extension: Extension, loaded: Any, bundle: Any) -> None:
    image = torch.rand(1, 64, 64, 3)
    plain = blend(extension, loaded, bundle, image, box_mask(3))
    result = blend(extension, loaded, bundle, image, box_mask(3), control=loaded.normal, control_samples=2)
    assert torch.equal(result.args[0], plain.args[0])
    scores = [entry["control_score"] for entry in result.args[3]]
    assert scores[0] > 0 and scores[1] > 0 and scores[2] is None
    # a model of random weights draws the same noise whatever the caption says
    assert "control, 2 samples" in result.args[4] and "Warning" in result.args[4]


def test_sampler_refuses_what_cannot_work(extension: Extension, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 64, 64, 3), box_mask()
    for values, message in (
        ({"cfg": 2.0}, "needs a negative conditioning"),
        ({"sampler_name": "nonsense"}, "there is no 'nonsense'"),
        ({"reweighting": "nonsense"}, "there is no 'nonsense'"),
        ({"positive": two_rows(extension)}, "has 2 rows for 1 samples"),
        ({"positive": [[torch.zeros(1, 77, 768), {}]]}, "its width is 768, the model's context has 128"),
    ):
        with pytest.raises(extension.errors.InputError, match=message):
            blend(extension, loaded, bundle, image, mask, **values)


# Training


def test_bundle_is_saved_reused_and_the_same_again(
    extension: Extension, loaded: Any, dataset: Any, bundle: Any
) -> None:
    folder = Path(extension.folder_paths.models_dir) / "anomalydiffusion"
    saved = (folder / "shared_00001.safetensors").read_bytes()
    before = state_of(loaded.model)
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, "initial": loaded.normal, **SMALL}
    again = extension.run("TrainAnomalyEmbedding", name="shared", **values)
    assert not (folder / "shared_00002.safetensors").exists()
    assert "loaded" in again.args[2] and again.ui["bundle_file"] == ["shared_00001.safetensors"]
    for key, rows in bundle.tokens.items():
        assert torch.equal(again.args[0].tokens[key], rows)
    (folder / "shared_00001.safetensors").unlink()
    extension.run("TrainAnomalyEmbedding", name="shared", **values)
    assert (folder / "shared_00001.safetensors").read_bytes() == saved
    assert state_of(loaded.model) == before
    metadata = bundle.metadata
    assert metadata["split"] == "first n" and len(metadata["training_files"]) == 8
    assert "part/test/dot/000.png" in metadata["training_files"]


def test_interrupt_leaves_training_at_once_and_nothing_behind(
    extension: Extension, loaded: Any, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found,unused-ignore]

    before = state_of(loaded.model)
    steps = []
    original = extension.host.Progress.at

    def at(progress: Any, done: int, preview: Any = None) -> None:
        steps.append(done)
        if done == 8 + 2:
            management.interrupt_current_processing(True)
        original(progress, done, preview)

    monkeypatch.setattr(extension.host.Progress, "at", at)
    with pytest.raises(management.InterruptProcessingException):
        values = {**SMALL, "steps": 50}
        extension.run(
            "TrainAnomalyEmbedding", model=loaded.model, vae=loaded.vae, dataset=dataset, name="stopped", **values
        )
    assert steps[-1] == 10, "8 encoded pictures, then the second step"
    assert not list((Path(extension.folder_paths.models_dir) / "anomalydiffusion").glob("*stopped*"))
    assert state_of(loaded.model) == before


def test_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_state(
    extension: Extension, loaded: Any, dataset: Any
) -> None:
    values = {**SMALL, "steps": 30, "learning_rate": 1e30, "encoder": "light"}
    with pytest.raises(extension.errors.TrainingError, match=r"not finite at step .*saved as wild_00001"):
        extension.run(
            "TrainAnomalyEmbedding", model=loaded.model, vae=loaded.vae, dataset=dataset, name="wild", **values
        )
    kept = extension.run("LoadSpatialEncoder", bundle_name="wild_00001.safetensors").args[0]
    assert kept.metadata["stopped_at_step"] >= 2
    assert all(rows.isfinite().all() for rows in kept.tokens.values())


def test_training_needs_defects_and_a_good_name(
    extension: Extension, loaded: Any, dataset: Any, tmp_path: Path
) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, **SMALL}
    with pytest.raises(extension.errors.InputError, match="name: '../x' does not lie inside"):
        extension.run("TrainMaskEmbedding", dataset=dataset, name="../x", **values)
    good_only = tmp_path / "part" / "train" / "good"
    good_only.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(good_only / "0.png")
    normals = load(extension, folder=str(tmp_path)).args[0]
    with pytest.raises(extension.errors.InputError, match="part has no defect pictures"):
        extension.run("TrainMaskEmbedding", dataset=normals, **values)


# Bundles, masks and data


def test_bundles_are_used_for_what_they_are(extension: Extension, loaded: Any, bundle: Any, mask_bundle: Any) -> None:
    error = extension.errors.AnomalyDiffusionError
    mask = box_mask(2)
    with pytest.raises(error, match="kind 'mask', needed is the kind 'anomaly'"):
        extension.run("SpatialAnomalyEmbedding", bundle=mask_bundle, defect_type="part/dot", mask=mask)
    with pytest.raises(error, match="kind 'anomaly', needed is the kind 'mask'"):
        extension.run("MaskEmbeddingSampler", model=loaded.model, vae=loaded.vae, bundle=bundle, cfg=1.0)
    with pytest.raises(error, match="there is no 'part/hole'.*part/bar, part/dot"):
        extension.run("SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/hole", mask=mask)
    with pytest.raises(error, match="is empty, but the bundle has several"):
        extension.run("SpatialAnomalyEmbedding", bundle=bundle, mask=mask)
    ((context, extra),) = extension.run(
        "SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/dot", mask=mask
    ).args[0]
    assert context.shape == (2, 8 + 4, 128)
    assert torch.equal(context[0, :8], bundle.tokens["part/dot"]) and not torch.equal(context[0, 8:], context[1, 8:])
    assert extra[extension.models.COLUMNS].tolist() == [True] * 12
    loaded_again, types, _ = extension.run("LoadSpatialEncoder", bundle_name="shared_00001.safetensors").args
    assert types == ["part/bar", "part/dot"] == list(loaded_again.types)


def test_masks_are_wanted_in_number_and_never_empty(extension: Extension, loaded: Any, mask_bundle: Any) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, "bundle": mask_bundle, "defect_type": "part/dot", "size": 64}
    values |= {"count": 3, "steps": 2, "cfg": 1.0, "largest_area": 1.0, "border_rule": False}
    masks, report = extension.run("MaskEmbeddingSampler", **values).args
    assert masks.shape == (3, 64, 64)
    assert set(masks.unique().tolist()) == {0.0, 1.0} and masks.flatten(1).amax(dim=1).eq(1).all()
    assert torch.equal(extension.run("MaskEmbeddingSampler", **values).args[0], masks)
    assert "3 of 3" in report
    with pytest.raises(
        extension.errors.InputError, match=r"none of 6 sampled masks can be used \(6 too (small|large)"
    ):
        extension.run("MaskEmbeddingSampler", **{**values, "smallest_area": 0.0, "largest_area": 0.0, "tries": 2})


def test_masks_that_pass_are_repeated_when_they_are_too_few(
    extension: Extension, loaded: Any, mask_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup = extension.module("anomalydiffusion_core.mask_cleanup")
    drawn = []

    def only_the_first(images: torch.Tensor, rules: Any) -> Any:
        first = not drawn
        drawn.append(len(images))
        masks = torch.ones(1 if first else 0, 1, 64, 64)
        rejected = tuple((i, "too small: by decree") for i in range(len(masks), len(images)))
        return cleanup.CleanedMasks(masks, tuple(range(len(masks))), rejected)

    monkeypatch.setattr(extension.module("nodes.masks"), "clean_masks", only_the_first)
    values = {"model": loaded.model, "vae": loaded.vae, "bundle": mask_bundle, "defect_type": "part/dot", "size": 64}
    masks, report = extension.run("MaskEmbeddingSampler", **values, count=3, steps=1, cfg=1.0, tries=2).args
    assert drawn == [3, 2, 1], "bounded by tries x count"
    assert masks.shape == (3, 64, 64)
    assert "1 of 6 sampled masks kept (5 too small); 3 were wanted" in report


def test_normals_are_drawn_without_repetition_first(extension: Extension, dataset: Any) -> None:
    images = extension.run("PickNormals", dataset=dataset, count=5, size=0).args[0]
    assert images.shape == (5, 64, 64, 3)
    assert len({picture.sum().item() for picture in images[:3]}) == 3
    again = extension.run("PickNormals", dataset=dataset, count=5, size=0).args[0]
    assert torch.equal(images, again)
    resized = extension.run("PickNormals", dataset=dataset, count=1, size=32, defect_type="part/dot").args[0]
    assert resized.shape == (1, 32, 32, 3)


def test_dataset_node_lists_types_and_names_faults(extension: Extension, data: Path, tmp_path: Path) -> None:
    result = load(extension)
    assert result.args[1] == ["part/bar", "part/dot"]
    assert result.args[2].shape[0] == 1 and result.args[2].shape[3] == 3
    assert "2 training pairs, 2 for testing" in result.args[3]
    only = load(extension, folder=str(data), defects=" dot ")
    assert only.args[1] == ["part/dot"]
    error = extension.errors.AnomalyDiffusionError
    with pytest.raises(error, match="nowhere does not exist"):
        load(extension, folder="nowhere")
    orphan = data / "part" / "ground_truth" / "dot" / "999_mask.png"
    Image.new("L", (64, 64), 255).save(orphan)
    node = extension.nodes["AnomalyDiffusionLoadDataset"]
    changed = node.fingerprint_inputs(folder="few", category="part", split="first n")
    try:
        with pytest.raises(error, match="999_mask.png"):
            load(extension)
    finally:
        orphan.unlink()
    assert node.fingerprint_inputs(folder="few", category="part", split="first n") != changed


def test_export_keeps_types_apart_and_leaves_nothing_after_an_error(extension: Extension) -> None:
    pictures, masks = torch.rand(2, 32, 32, 3), box_mask(2, (32, 32))[:, :, :32]
    effects = [{"seed": 4, "effect_score": 3.0}, {"seed": 5, "effect_score": 30.0}]
    values: dict[str, Any] = {
        "images": [pictures, pictures],
        "masks": [masks, masks],
        "normals": [pictures],
        "defect_type": ["part/dot", "part/bar"],
        "effects": [effects, effects],
        "folder": ["runs/pairs"],
        "min_effect": [10.0],
    }
    result = extension.run("ExportPairs", **values)
    folder = Path(result.args[0])
    assert folder == extension.host.output_root() / "runs" / "pairs_00001"
    assert result.ui["pairs_folder"] == ["runs/pairs_00001"]
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(line["defect"], line["seed"]) for line in lines] == [("dot", 5), ("bar", 5)]
    assert {line["outside_max_abs_diff"] for line in lines} == {0}
    assert (folder / "part" / "ground_truth" / "bar" / "000_mask.png").is_file()
    for change, message in (
        ({"min_effect": [100.0]}, "no pair reaches 100"),
        ({"defect_type": ["part/dot", "dot"]}, "'dot' is not of the form object/defect"),
        ({"effects": [effects, effects[:1]]}, "2 images, 2 masks, 2 normals and 1 effects"),
        ({"defect_type": ["part/dot"]}, "Connect the list types"),
        ({"folder": ["../pairs"]}, "does not lie inside"),
    ):
        with pytest.raises(extension.errors.InputError, match=message):
            extension.run("ExportPairs", **{**values, **change})
    assert [path.name for path in folder.parent.iterdir()] == ["pairs_00001"]


def test_evaluation_writes_table_and_sheets(extension: Extension, dataset: Any) -> None:
    pictures, masks = torch.rand(2, 64, 64, 3), box_mask(2)
    pairs = extension.run(
        "ExportPairs",
        images=[pictures],
        masks=[masks],
        normals=[pictures],
        defect_type=["part/dot"],
        folder=["eval/pairs"],
        min_effect=[0.0],
    ).args[0]
    values = {"dataset": dataset, "size": 32, "width": 2, "steps": 1, "batch_size": 2, "runs": 1, "folder": "eval/out"}
    result = extension.run("EvaluateLocalization", pairs="eval/pairs_00001", **values)
    folder = extension.host.output_root() / result.ui["evaluation_folder"][0]
    written = json.loads((folder / "evaluation.json").read_text())
    assert len(written["without"]["runs"]) == len(written["with"]["runs"]) == 1
    assert (written["generated_pairs"], written["test_defects"], written["test_normals"]) == (2, 4, 3)
    assert [entry["kind"] for entry in written["heat_maps"]] == ["part/bar", "part/dot"] * 2
    for entry in (*written["heat_maps"], {"file": "contact_sheet.png"}, {"file": "heat_maps.png"}):
        assert (folder / entry["file"]).is_file()
    assert "pixel AP" in result.args[0] and (folder / "table.md").read_text().strip() == result.args[0].strip()
    with pytest.raises(extension.errors.InputError, match="pairs: .*missing does not exist"):
        extension.run("EvaluateLocalization", pairs="missing", **values)
    everything = load(extension, train_count=4).args[0]
    with pytest.raises(extension.errors.InputError, match="no defect picture of part is kept for testing"):
        extension.run("EvaluateLocalization", pairs=pairs, **{**values, "dataset": everything})


# The other base model


def test_slim_stable_diffusion_from_the_stock_loader(extension: Extension, prior: Path, dataset: Any) -> None:
    """Random weights of the smallest U-Net that ComfyUI takes for Stable Diffusion 1.5: trains and samples."""
    import comfy.sd  # type: ignore[import-not-found,unused-ignore]
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
    before = state_of(model)
    trained = extension.run(
        "TrainAnomalyEmbedding", model=model, vae=vae, dataset=dataset, name="slim", **{**SMALL, "resolution": 32}
    ).args[0]
    assert trained.width == 768
    assert state_of(model) == before
    loaded = SimpleNamespace(model=model, vae=vae)
    image, mask = torch.rand(1, 32, 32, 3), box_mask(size=(32, 32))
    images = blend(extension, loaded, trained, image, mask).args[0]
    assert images.isfinite().all() and not torch.equal(images, image)
