"""Bundles survive the disk, refuse what does not fit, and never half-write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anomalydiffusion_core.bundles.bundle import AnomalyBundle, anomaly_context, load_bundle
from anomalydiffusion_core.conditioning.spatial_encoder import build_spatial_encoder
from anomalydiffusion_core.errors import BundleError, InputError


def make_bundle(kind: str = "anomaly", width: int = 8) -> AnomalyBundle:
    generator = torch.Generator().manual_seed(0)
    tokens = {key: torch.randn(3, width, generator=generator) for key in ("bottle/crack", "m\u00fctter/broken large")}
    encoder = build_spatial_encoder("light", 2, width, seed=5) if kind == "anomaly" else None
    return AnomalyBundle(kind, tokens, encoder, {"note": "a", "base_fingerprint": "f00"})


def masks() -> torch.Tensor:
    result = torch.zeros(2, 1, 64, 64)
    result[0, 0, 4:20, 8:30] = 1
    result[1, 0, 40:60, 40:50] = 1
    return result


@pytest.mark.parametrize("kind", ["anomaly", "mask"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    bundle = make_bundle(kind)
    bundle.save(tmp_path / "deep" / "b.safetensors")
    loaded = load_bundle(tmp_path / "deep" / "b.safetensors")
    assert loaded.kind == kind and loaded.types == bundle.types and loaded.width == 8
    assert all(torch.equal(loaded.tokens[key], bundle.tokens[key]) for key in bundle.types)
    assert loaded.metadata["note"] == "a" and loaded.base_fingerprint == "f00" and loaded.token_route == "context"
    if kind == "anomaly":
        assert torch.equal(
            anomaly_context(loaded, "bottle/crack", masks()), anomaly_context(bundle, "bottle/crack", masks())
        )


def test_the_layout_on_disk_and_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_bundle().save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["anomaly/bottle/crack"].shape == (3, 8)
    assert all(name.startswith(("anomaly/", "spatial/")) for name in tensors)


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(BundleError, match="exists already"):
        make_bundle().save(path)
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(BundleError, match="cannot be written"):
        make_bundle().save(path / "below a file.safetensors")


def test_context_is_anomaly_tokens_then_spatial_tokens_of_each_mask_alone() -> None:
    bundle = make_bundle()
    context = anomaly_context(bundle, "bottle/crack", masks())
    assert context.shape == (2, 5, 8)
    assert torch.equal(context[0, :3], bundle.tokens["bottle/crack"]) and torch.equal(context[0, :3], context[1, :3])
    assert not torch.allclose(context[0, 3:], context[1, 3:])
    assert torch.equal(anomaly_context(bundle, "bottle/crack", masks()[1:]), context[1:])


def test_kinds_widths_and_types_are_checked_with_both_values() -> None:
    with pytest.raises(BundleError, match="'mask'.*'anomaly'"):
        anomaly_context(make_bundle("mask"), "bottle/crack", masks())
    with pytest.raises(BundleError, match="width 8.*768"):
        make_bundle().require("anomaly", 768)
    make_bundle().require("anomaly", 8)
    with pytest.raises(BundleError, match="bottle/crack, m"):
        make_bundle().type_tokens("bottle/dent")
    with pytest.raises(InputError, match="entry 0 of 1 is empty"):
        anomaly_context(make_bundle(), "bottle/crack", torch.zeros(1, 1, 64, 64))
    with pytest.raises(BundleError, match="object/defect"):
        AnomalyBundle("mask", {"crack": torch.zeros(2, 4)})
    with pytest.raises(BundleError, match="width"):
        AnomalyBundle("mask", {"a/b": torch.zeros(2, 4), "a/c": torch.zeros(2, 5)})
    with pytest.raises(BundleError, match="no spatial encoder"):
        AnomalyBundle("anomaly", {"a/b": torch.zeros(2, 4)})
    route = make_bundle()
    route.metadata["token_route"] = "clip"
    with pytest.raises(BundleError, match="'clip'"):
        route.require("anomaly", 8)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(BundleError, match="junk"):
        load_bundle(tmp_path / "junk.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BundleError, match="not a bundle"):
        load_bundle(tmp_path / "other.safetensors")
    make_bundle().save(tmp_path / "whole.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "whole.safetensors", framework="pt") as stored:
        metadata = stored.metadata()
    for lost in ("anomaly/bottle/crack", "spatial/heads.1.out.bias"):
        tensors = load_file(tmp_path / "whole.safetensors")
        del tensors[lost]
        save_file(tensors, tmp_path / "part.safetensors", metadata=metadata)
        with pytest.raises(BundleError, match=lost):
            load_bundle(tmp_path / "part.safetensors")
    save_file({}, tmp_path / "bad.safetensors", metadata={"anomalydiffusion": "{"})
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(tmp_path / "bad.safetensors")
    newer = metadata["anomalydiffusion"].replace('"format_version": 1', '"format_version": 9')
    save_file(load_file(tmp_path / "whole.safetensors"), tmp_path / "new.safetensors", {"anomalydiffusion": newer})
    with pytest.raises(BundleError, match="version 9"):
        load_bundle(tmp_path / "new.safetensors")
