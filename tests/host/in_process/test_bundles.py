"""Nodes around bundles: files of the authors' code, merging, textual inversion for the stock nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import authors_layout
import pytest
import torch


@pytest.fixture
def folder(extension: Any) -> Iterator[Path]:
    """A folder below models/anomalydiffusion that is empty before and after."""
    import shutil

    path = Path(extension.folder_paths.models_dir) / "anomalydiffusion" / "authors"
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


def load(extension: Any, **values: Any) -> Any:
    return extension.run("LoadSpatialEncoder", bundle_name="authors/spatial_encoder.pt", **values)


def test_authors_files_are_loaded_and_saved_once_as_a_bundle(extension: Any, folder: Path) -> None:
    torch.save(authors_layout.encoder_state(width=768), folder / "spatial_encoder.pt")
    rows = authors_layout.write_embeddings(folder / "embeddings.pt", k=5, width=768)
    bundle, types, report, model = load(extension).args
    assert model is None, "none was connected"
    assert types == ["bottle/crack", "bottle/dent"] and bundle.width == 768
    assert torch.equal(bundle.tokens["bottle/dent"], rows["bottle+dent"])
    for part in ("5 tokens of width 768", "token route clip", "authors_ir50, 2 tokens, running statistics"):
        assert part in report
    assert not list(folder.glob("*.safetensors"))

    batch = {"normalisation": "batch statistics", "save_as": "authors/own"}
    assert "saved as own_00001.safetensors" in load(extension, **batch).args[2]
    again = load(extension, **batch)
    assert "saved before as own_00001.safetensors" in again.args[2]
    assert [path.name for path in folder.glob("*.safetensors")] == ["own_00001.safetensors"]
    stored = extension.run("LoadSpatialEncoder", bundle_name="authors/own_00001.safetensors").args[0]
    assert stored.spatial_encoder.looks_at_batch
    masks = extension.box_mask(2, size=(32, 32))[:, None]
    with torch.no_grad():
        expected = again.args[0].spatial_encoder(masks)
        assert torch.equal(stored.spatial_encoder(masks), expected)
    # The choice can be made again, and is not kept in the file.
    other = extension.run(
        "LoadSpatialEncoder", bundle_name="authors/own_00001.safetensors", normalisation="running statistics"
    ).args[0]
    assert not other.spatial_encoder.looks_at_batch


def test_imported_tokens_become_conditioning_at_any_size_of_the_mask(
    extension: Any, diffusion: Any, folder: Path
) -> None:
    torch.save(authors_layout.encoder_state(width=768), folder / "spatial_encoder.pt")
    authors_layout.write_embeddings(folder / "embeddings.pt", width=768)
    for normalisation, alike in (("running statistics", True), ("batch statistics", False)):
        bundle = load(extension, normalisation=normalisation).args[0]
        values = {"bundle": bundle, "defect_type": "bottle/crack", "clip": diffusion.clip}
        together = extension.run("SpatialAnomalyEmbedding", mask=extension.box_mask(2), **values).args[0]
        alone = extension.run("SpatialAnomalyEmbedding", mask=extension.box_mask(), **values).args[0]
        assert together[0][0].shape == (2, 77, 768) and together[0][0].isfinite().all()
        assert torch.allclose(together[0][0][:1], alone[0][0], atol=1e-4) == alike


def test_the_authors_own_width_is_refused_by_stable_diffusion(extension: Any, diffusion: Any, folder: Path) -> None:
    torch.save(authors_layout.encoder_state(width=1280, halvings=2), folder / "spatial_encoder.pt")
    authors_layout.write_embeddings(folder / "embeddings.pt", width=1280)
    bundle = load(extension).args[0]
    with pytest.raises(extension.errors.BundleError, match="tokens have the width 1280, the text encoder has 768"):
        extension.run(
            "SpatialAnomalyEmbedding",
            bundle=bundle,
            defect_type="bottle/crack",
            mask=extension.box_mask(),
            clip=diffusion.clip,
        )


def test_choices_that_do_not_fit_the_file(extension: Any, folder: Path, bundle: Any) -> None:
    errors = extension.errors
    with pytest.raises(errors.InputError, match=r"'a' spatial|'light' spatial encoder"):
        extension.run("LoadSpatialEncoder", bundle_name="shared_00001.safetensors", normalisation="batch statistics")
    with pytest.raises(errors.InputError, match="save_as: shared_00001.safetensors is a bundle already"):
        extension.run("LoadSpatialEncoder", bundle_name="shared_00001.safetensors", save_as="x")
    torch.save(authors_layout.encoder_state(), folder / "spatial_encoder.pt")
    with pytest.raises(errors.BundleError, match=r"embeddings\.pt does not exist"):
        load(extension)
    authors_layout.write_embeddings(folder / "other.pt")
    (folder / ".state").mkdir()
    (folder / ".state" / "hidden.pt").write_bytes(b"")
    options = extension.nodes["AnomalyDiffusionLoadSpatialEncoder"].define_schema().inputs[0].options
    assert "authors/other.pt" in options and not any("hidden" in name for name in options)
    assert len(load(extension, embeddings="authors/other.pt").args[1]) == 2
    with pytest.raises(errors.InputError, match="save_as|name: '../x'"):
        load(extension, embeddings="authors/other.pt", save_as="../x")


def test_merging_saves_once(extension: Any, bundle: Any, folder: Path) -> None:
    other = type(bundle)(
        "anomaly", {"part/other": bundle.tokens["part/dot"] + 1}, bundle.spatial_encoder, bundle.metadata
    )
    values = {"bundle_a": bundle, "bundle_b": other, "save_as": "authors/merged"}
    merged, types, report = extension.run("MergeBundles", **values).args
    assert types == [*bundle.types, "part/other"] and "saved as merged_00001.safetensors" in report
    assert "saved before as merged_00001.safetensors" in extension.run("MergeBundles", **values).args[2]
    loaded = extension.run("LoadSpatialEncoder", bundle_name="authors/merged_00001.safetensors").args[0]
    assert torch.equal(loaded.tokens["part/other"], merged.tokens["part/other"])
    # The training that one of them came from still finds its own file, not this one.
    assert loaded.metadata["content_key"] != bundle.metadata["content_key"]
    with pytest.raises(extension.errors.BundleError, match="'part/bar' is in bundle_a and in bundle_b"):
        extension.run("MergeBundles", bundle_a=bundle, bundle_b=bundle)


@pytest.fixture
def embeddings(extension: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's embeddings folder, an empty one of its own."""
    path = Path(extension.folder_paths.models_dir) / "embeddings"
    known = dict(extension.folder_paths.folder_names_and_paths)
    known["embeddings"] = ([str(path)], known["embeddings"][1])
    monkeypatch.setattr(extension.folder_paths, "folder_names_and_paths", known)
    return path


def test_textual_inversion_is_listed_at_once_and_changes_the_stock_encoding(
    extension: Any, stock: Any, diffusion: Any, clip_bundle: Any, embeddings: Path
) -> None:
    embeddings.mkdir(exist_ok=True)
    listed = extension.folder_paths.get_filename_list
    before = listed("embeddings")
    prompts, report = extension.run("SaveTextualInversion", bundle=clip_bundle, name="my set").args
    assert prompts == ["embedding:my_set_part_dot_00001"] and prompts[0] in report
    assert set(listed("embeddings")) - set(before) == {"my_set_part_dot_00001.safetensors"}
    # Running again writes nothing new; other tokens get another number.
    assert extension.run("SaveTextualInversion", bundle=clip_bundle, name="my set").args[0] == prompts
    changed = type(clip_bundle)(
        "anomaly", {"part/dot": clip_bundle.tokens["part/dot"] * 2}, clip_bundle.spatial_encoder, clip_bundle.metadata
    )
    other = extension.run("SaveTextualInversion", bundle=changed, name="my set", defect_type="part/dot").args[0]
    assert other == ["embedding:my_set_part_dot_00002"]
    assert sorted(path.name for path in embeddings.iterdir()) == [
        "my_set_part_dot_00001.safetensors",
        "my_set_part_dot_00002.safetensors",
    ]

    clip = stock("CheckpointLoaderSimple", "slim.safetensors")[1]
    template = "a photo of a {} on leather"
    used = stock("CLIPTextEncode", clip, template.format(prompts[0]))[0]
    without = stock("CLIPTextEncode", clip, template.format(""))[0]
    encoder = extension.module("nodes.host.text_encoder").TextEncoder(diffusion.clip)
    with torch.inference_mode():
        window = encoder.parse(template.format("*"), "*").fill(clip_bundle.tokens["part/dot"])
        spliced = encoder.conditioning([window])
    assert torch.equal(used[0][0], spliced[0][0])
    assert float((used[0][0] - without[0][0]).abs().max()) > 0.1


def test_textual_inversion_refuses_what_would_have_no_effect(
    extension: Any, bundle: Any, clip_bundle: Any, embeddings: Path
) -> None:
    with pytest.raises(extension.errors.BundleError, match="width 128.*768"):
        extension.run("SaveTextualInversion", bundle=bundle)
    with pytest.raises(extension.errors.InputError, match="name: '../x'"):
        extension.run("SaveTextualInversion", bundle=clip_bundle, name="../x")


def test_masks_of_another_base_model_are_refused(extension: Any, loaded: Any, mask_bundle: Any) -> None:
    other = type(mask_bundle)("mask", mask_bundle.tokens, None, {**mask_bundle.metadata, "base_fingerprint": "2:ba"})
    own = mask_bundle.base_fingerprint
    with pytest.raises(extension.errors.InputError, match=f"bundle: .* trained on the model 2:ba, this one is {own}"):
        extension.run("MaskEmbeddingSampler", model=loaded.model, vae=loaded.vae, bundle=other, defect_type="part/dot")
