"""Merging and listing bundles, and textual-inversion files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from typer.testing import CliRunner

from anomalydiffusion_core.bundles.bundle import AnomalyBundle, anomaly_tokens, load_bundle
from anomalydiffusion_core.bundles.listing import bundle_table, list_bundles
from anomalydiffusion_core.bundles.merging import merge_bundles
from anomalydiffusion_core.bundles.textual_inversion import prompt_name, textual_inversion_file
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.conditioning.spatial_encoder import build_spatial_encoder
from anomalydiffusion_core.errors import BundleError


def make(*types: str, kind: str = "anomaly", width: int = 8, k: int = 3, n: int = 2, seed: int = 5) -> AnomalyBundle:
    generator = torch.Generator().manual_seed(len(types[0]))
    tokens = {key: torch.randn(k, width, generator=generator) for key in types}
    encoder = build_spatial_encoder("light", n, width, seed=seed) if kind == "anomaly" else None
    metadata = {
        "base_fingerprint": "f00",
        "token_route": "context",
        "settings": {"resolution": 64},
        "content_key": f"key of {types[0]}",
        "losses": [1.0, 0.5],
        "split": "first n",
        "training_files": {f"{types[0]}/0.png": "1a"},
    }
    return AnomalyBundle(kind, tokens, encoder, metadata)


def test_merged_types_are_used_as_before_also_after_the_disk(tmp_path: Path) -> None:
    one, other = make("bottle/crack"), make("bottle/big dent", "cable/cut", k=5)
    merged = merge_bundles({"a": one, "b": other})
    merged.save(tmp_path / "merged.safetensors")
    loaded = load_bundle(tmp_path / "merged.safetensors")
    assert loaded.types == ("bottle/crack", "bottle/big dent", "cable/cut") and loaded.kind == "anomaly"
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:30, 10:50] = 1
    for source in (one, other):
        for key in source.types:
            assert torch.equal(anomaly_tokens(loaded, key, mask), anomaly_tokens(source, key, mask))
    assert loaded.base_fingerprint == "f00" and loaded.resolution == 64
    # It is the result of neither training, and says what it came from.
    assert "content_key" not in loaded.metadata and "losses" not in loaded.metadata
    assert [part["content_key"] for part in loaded.metadata["merged_from"]] == [
        "key of bottle/crack",
        "key of bottle/big dent",
    ]
    assert sorted(loaded.metadata["training_files"]) == ["bottle/big dent/0.png", "bottle/crack/0.png"]
    masks = merge_bundles(
        {"a": make("x/a", kind="mask"), "b": make("x/b", kind="mask"), "c": make("x/c", kind="mask")}
    )
    assert masks.types == ("x/a", "x/b", "x/c") and masks.spatial_encoder is None


def test_names_that_clash_name_both_bundles() -> None:
    with pytest.raises(BundleError, match="'bottle/crack' is in first and in third"):
        merge_bundles({"first": make("bottle/crack"), "second": make("a/b"), "third": make("bottle/crack", "x/y")})


def test_another_spatial_encoder_must_be_chosen() -> None:
    bundles = {"a": make("x/a"), "b": make("x/b", seed=6)}
    with pytest.raises(BundleError, match="those of a and of b are not the same"):
        merge_bundles(bundles)
    for name, bundle in bundles.items():
        merged = merge_bundles(bundles, name)
        assert merged.spatial_encoder is bundle.spatial_encoder and merged.types == ("x/a", "x/b")
    with pytest.raises(BundleError, match="unknown bundle 'c'. Give one of a, b"):
        merge_bundles(bundles, "c")
    with pytest.raises(BundleError, match="merging 1 requires"):
        merge_bundles({"a": make("x/a")})


def changed(**entries: Any) -> AnomalyBundle:
    bundle = make("x/b")
    return replace(bundle, metadata={**bundle.metadata, **entries})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make("x/b", kind="mask"), "kind: a has anomaly, b has mask"),
        (changed(base_fingerprint="ba5e"), "base model: a has f00, b has ba5e"),
        (changed(base_fingerprint=""), "base model: a has f00, b has none"),
        (make("x/b", width=16), "width: a has 8, b has 16"),
        (changed(token_route="clip"), "token route: a has context, b has clip"),
        (make("x/b", n=4), "number of spatial tokens: a has 2, b has 4"),
        (changed(settings={"resolution": 128}), "resolution: a has 64, b has 128"),
    ],
)
def test_bundles_that_differ_are_refused_with_both_values(other: AnomalyBundle, message: str) -> None:
    for kept in ("", "a"):
        with pytest.raises(BundleError, match=message):
            merge_bundles({"a": make("x/a"), "b": other}, kept)


@pytest.mark.parametrize("entry", ["template", "text_encoder_fingerprint"])
def test_prompts_must_agree_where_tokens_belong_into_one(entry: str) -> None:
    one = make("x/a")
    one.metadata |= {"token_route": "clip", entry: "a *"}
    other = changed(token_route="clip", **{entry: "the *"})
    with pytest.raises(BundleError, match=r"a has a \*, b has the \*"):
        merge_bundles({"a": one, "b": other})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make("bottle/crack", "bottle/dent").save(tmp_path / "one.safetensors")
    make("cable/cut", kind="mask", k=4).save(tmp_path / "deep" / "two.safetensors")
    mixed = make("x/a")
    mixed.tokens["x/b"] = torch.zeros(6, 8)
    mixed.save(tmp_path / "three.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    return tmp_path


def test_listing_says_what_each_bundle_holds(folder: Path) -> None:
    found, left_out = list_bundles(folder)
    table = bundle_table(found, folder).splitlines()
    assert table[0] == "| file | kind | types | base | width | k | n | route | encoder | LoRA |"
    assert table[2:] == [
        "| deep/two.safetensors | mask | cable/cut | f00 | 8 | 4 | - | context | - | - |",
        "| one.safetensors | anomaly | bottle/crack, bottle/dent | f00 | 8 | 3 | 2 | context | light | - |",
        "| three.safetensors | anomaly | x/a, x/b | f00 | 8 | 3 to 6 | 2 | context | light | - |",
    ]
    assert len(left_out) == 2 and "junk.safetensors" in left_out[0] and "lora.safetensors" in left_out[1]
    with pytest.raises(BundleError, match="is not a folder"):
        list_bundles(folder / "none")


def test_command_lists_bundles(folder: Path) -> None:
    done = CliRunner().invoke(app, ["bundles", str(folder)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.stderr
    assert "| one.safetensors | anomaly | bottle/crack, bottle/dent | f00 |" in done.stdout
    assert "junk.safetensors" in done.stderr and "Traceback" not in done.stderr
    done = CliRunner().invoke(app, ["bundles", str(folder / "none")])
    assert done.exit_code == 1 and "is not a folder" in done.stderr and "Traceback" not in done.stderr


def test_textual_inversion_file_is_ordinary_and_needs_word_tokens(tmp_path: Path) -> None:
    bundle = make("bottle/crack", width=768)
    with pytest.raises(BundleError, match="token route 'context'.*'clip'"):
        textual_inversion_file(bundle, "bottle/crack")
    bundle.metadata["token_route"] = "clip"
    content = textual_inversion_file(bundle, "bottle/crack")
    assert content == textual_inversion_file(bundle, "bottle/crack")
    stored = load(content)
    assert list(stored) == ["clip_l"] and torch.equal(stored["clip_l"], bundle.tokens["bottle/crack"])
    (tmp_path / "a.safetensors").write_bytes(content)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["anomalydiffusion"])["type"] == "bottle/crack"
    with pytest.raises(BundleError, match="width 128, the text encoder of Stable Diffusion 1.5 has 768"):
        textual_inversion_file(make("bottle/crack", width=128), "bottle/crack")
    with pytest.raises(BundleError, match="Choose one of: bottle/crack"):
        textual_inversion_file(bundle, "bottle/dent")


def test_names_for_prompts_hold_nothing_that_a_prompt_cuts() -> None:
    assert prompt_name("my set/bottle_broken (large):1.2, x") == "my_set/bottle_broken_large_1_2_x"
    assert prompt_name("m\u00fctter_bent") == "m\u00fctter_bent"
