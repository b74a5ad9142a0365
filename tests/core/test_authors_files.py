"""The authors' spatial encoder and embeddings: same numbers as their layout says, and nothing of a file is run."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import authors_layout
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalydiffusion_core.bundles.authors_encoder import (
    BATCH_STATISTICS,
    RUNNING_STATISTICS,
    AuthorsEncoder,
    AuthorsLayout,
)
from anomalydiffusion_core.bundles.authors_files import import_authors_files, read_embeddings, read_spatial_encoder
from anomalydiffusion_core.bundles.bundle import anomaly_tokens, load_bundle
from anomalydiffusion_core.errors import BundleError, InputError
from anomalydiffusion_core.restricted_pickle import read_restricted


def masks(count: int = 3, side: int = 32) -> Tensor:
    made = torch.zeros(count, 1, side, side)
    for number in range(count):
        made[number, :, 3 + 5 * number : 11 + 5 * number, 6 : 14 + 4 * number] = 1
    return made


def by_hand(state: dict[str, Tensor], mask: Tensor, batch: bool) -> Tensor:
    """The layout as the published code describes it, written with functions on the named weights only."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if batch:
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        scaled = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"].view(1, -1, 1, 1) + state[f"{name}.bias"].view(1, -1, 1, 1)

    def slope(x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * state[f"{name}.weight"].view(1, -1, 1, 1))

    x = (mask * 2 - 1).repeat(1, 3, 1, 1)
    x = slope(norm(F.conv2d(x, state["input_layer.0.weight"], padding=1), "input_layer.1"), "input_layer.2")
    taps = {}
    for number in range(24):
        name, stride = f"body.{number}", 2 if number in (0, 3, 7, 21) else 1
        shortcut = x[:, :, ::stride, ::stride]
        if f"{name}.shortcut_layer.0.weight" in state:
            shortcut = norm(F.conv2d(shortcut, state[f"{name}.shortcut_layer.0.weight"]), f"{name}.shortcut_layer.1")
        y = F.conv2d(norm(x, f"{name}.res_layer.0"), state[f"{name}.res_layer.1.weight"], padding=1)
        y = F.conv2d(slope(y, f"{name}.res_layer.2"), state[f"{name}.res_layer.3.weight"], stride=stride, padding=1)
        x = taps[number] = norm(y, f"{name}.res_layer.4") + shortcut

    def up(x: Tensor, name: str, tap: Tensor) -> Tensor:
        lateral = F.conv2d(tap, state[f"{name}.weight"], state[f"{name}.bias"])
        return F.interpolate(x, size=lateral.shape[-2:], mode="bilinear", align_corners=True) + lateral

    p = up(up(taps[23], "latlayer1", taps[20]), "latlayer2", taps[6])
    tokens, style = [], 0
    while f"styles.{style}.linear.weight" in state:
        y, place = p, 0
        while f"styles.{style}.convs.{place}.weight" in state:
            weight, bias = (state[f"styles.{style}.convs.{place}.{part}"] for part in ("weight", "bias"))
            y = F.conv2d(y, weight, bias, stride=2, padding=1)
            y, place = torch.where(y > 0, y, 0.01 * y), place + 2
        weight = state[f"styles.{style}.linear.weight"] / math.sqrt(y.shape[1])
        tokens.append(y.flatten(1) @ weight.T + state[f"styles.{style}.linear.bias"])
        style += 1
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("normalisation", [RUNNING_STATISTICS, BATCH_STATISTICS])
@pytest.mark.parametrize("channels", [(4, 4, 6, 8, 10), (4, 6, 6, 8, 10)])
def test_the_numbers_are_those_of_the_layout(channels: tuple[int, ...], normalisation: str) -> None:
    state = authors_layout.encoder_state(channels)
    encoder = AuthorsEncoder.from_state(state, normalisation)
    assert encoder.state_dict().keys() == state.keys()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    expected = by_hand(state, masks(), batch=normalisation == BATCH_STATISTICS)
    for mode in (True, False):  # the choice holds in either mode of the module
        encoder.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(encoder(masks()), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_batch_mates_matter_with_batch_statistics_only() -> None:
    state = authors_layout.encoder_state()
    with torch.no_grad():
        for normalisation, alike in ((RUNNING_STATISTICS, True), (BATCH_STATISTICS, False)):
            encoder = AuthorsEncoder.from_state(state, normalisation)
            together, alone = encoder(masks())[:1], encoder(masks()[:1])
            assert torch.allclose(together, alone, atol=1e-4) == alike and encoder.looks_at_batch != alike


def test_names_and_number_of_weights_are_those_of_the_published_layout() -> None:
    layout = AuthorsLayout((64, 64, 128, 256, 512), tokens=4, width=1280, halvings=6)
    with torch.device("meta"):
        state = AuthorsEncoder(layout).state_dict()
    assert len(state) == 397 and layout.resolution == 256
    weights = sum(value.numel() for name, value in state.items() if not name.endswith("num_batches_tracked"))
    buffers = sum(value.numel() for name, value in state.items() if ".running_" in name)
    assert round((weights - buffers) / 1e6, 2) == 356.02
    shapes = {
        "input_layer.2.weight": (64,),
        "body.7.shortcut_layer.0.weight": (256, 128, 1, 1),
        "body.23.res_layer.3.weight": (512, 512, 3, 3),
        "styles.3.convs.0.weight": (1280, 512, 3, 3),
        "styles.0.convs.10.bias": (1280,),
        "latlayer2.weight": (512, 128, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert AuthorsLayout.of(state) == layout


@pytest.mark.parametrize("old", [False, True])
def test_tensors_of_every_kind_are_read_as_torch_reads_them(tmp_path: Path, old: bool) -> None:
    base = torch.arange(24.0).view(4, 6)
    stored = {
        "view": base.t()[1:3],
        "whole": base,
        "number": torch.tensor(7),
        "half": base.half(),
        "flags": base > 3,
        "bytes": base.to(torch.uint8),
        "empty": torch.zeros(0, 3),
        "weight": torch.nn.Parameter(base[1]),
    }
    torch.save(stored, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    found = read_restricted(tmp_path / "a.pt")
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize(
    "kind", ["state dict", "state dict in the old format", "half precision", "module", "module in the old format"]
)
def test_every_way_of_storing_the_encoder(tmp_path: Path, kind: str) -> None:
    state, path = authors_layout.encoder_state(), tmp_path / "spatial_encoder.pt"
    if kind == "half precision":
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    if kind.startswith("module"):
        authors_layout.write_pickled_encoder(path, state, old="old" in kind)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="old" not in kind)
    encoder = read_spatial_encoder(path)
    assert (encoder.tokens, encoder.width, encoder.resolution) == (2, 12, 32)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("k", [4, 12])
def test_embeddings_say_k_and_names_themselves(tmp_path: Path, old: bool, k: int) -> None:
    names = ["bottle+broken_large", "metal_nut+scratch", "cable+missing wire"]
    rows = authors_layout.write_embeddings(tmp_path / "embeddings.pt", names, k=k, old=old)
    found = read_embeddings(tmp_path / "embeddings.pt")
    assert set(found) == {"bottle/broken_large", "metal_nut/scratch", "cable/missing wire"}
    assert all(torch.equal(found[name.replace("+", "/")], rows[name]) for name in names)


def test_conversion_to_a_bundle_survives_the_disk(tmp_path: Path) -> None:
    state = authors_layout.encoder_state(tokens=3)
    torch.save(state, tmp_path / "spatial_encoder.pt")
    rows = authors_layout.write_embeddings(tmp_path / "embeddings.pt")
    paths = (tmp_path / "spatial_encoder.pt", tmp_path / "embeddings.pt")
    for normalisation in (RUNNING_STATISTICS, BATCH_STATISTICS):
        bundle = import_authors_files(*paths, normalisation)
        stored = tmp_path / f"{normalisation}.safetensors"
        bundle.save(stored)
        loaded = load_bundle(stored)
        assert loaded.spatial_encoder is not None and loaded.spatial_encoder.variant == "authors_ir50"
        assert loaded.token_route == "clip" and loaded.template == "a photo of a *" and loaded.resolution == 32
        tokens = anomaly_tokens(loaded, "bottle/crack", masks())
        assert torch.equal(tokens, anomaly_tokens(bundle, "bottle/crack", masks()))
        assert torch.equal(tokens[1, :3], rows["bottle+crack"])
        expected = by_hand(state, masks(), batch=normalisation == BATCH_STATISTICS)
        torch.testing.assert_close(tokens[:, 3:], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="64x64 px, this spatial encoder takes 32x32 px"):
        anomaly_tokens(loaded, "bottle/crack", masks(side=64))


class _Runs:
    """Pickles to a call that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"echo run > {self.path}",))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["beside the weights", "as the embeddings", "whole file"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, old: bool, place: str) -> None:
    trap, path = tmp_path / "was_run", tmp_path / "evil.pt"
    content: Any = {
        "beside the weights": {**authors_layout.encoder_state(), "extra": _Runs(trap)},
        "as the embeddings": {"string_to_param": _Runs(trap)},
        "whole file": _Runs(trap),
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    for read in (read_restricted, read_spatial_encoder, read_embeddings):
        with pytest.raises(BundleError, match=r"evil.pt asks for '(posix|nt)\.system'.*not run"):
            read(path)
    assert not trap.exists()


@pytest.mark.parametrize("lost", [1, 8, 9, 15, 16, 17])
def test_a_file_that_was_cut_says_so(tmp_path: Path, lost: int) -> None:
    """Numbers of the last storage (8 bytes) and its length (8 bytes) before them, cut anywhere."""
    path = tmp_path / "cut.pt"
    state = {name: torch.tensor([3], dtype=torch.long) for name in "ab"}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert read_restricted(path) == state
    path.write_bytes(whole[:-lost])
    with pytest.raises(BundleError, match="cut.pt ends too early"):
        read_restricted(path)
    path.write_bytes(whole[:-16] + (2).to_bytes(8, "little") + whole[-8:])
    with pytest.raises(BundleError, match="contradicts itself"):
        read_restricted(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"no file of weights")
    with pytest.raises(BundleError, match="junk.pt"):
        read_restricted(junk)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Runs(tmp_path / "was_run"), protocol))
        with pytest.raises(BundleError, match=r"plain.pt asks for '(posix|nt)\.system'"):
            read_restricted(tmp_path / "plain.pt")
    assert not (tmp_path / "was_run").exists()
    with pytest.raises(BundleError, match="does not exist"):
        read_restricted(tmp_path / "none.pt")
    # A class that only looks like one of a layer.
    torch.save({"x": torch.nn.GRU(2, 2)}, tmp_path / "gru.pt")
    with pytest.raises(BundleError, match=r"torch\.nn\.modules\.rnn\.GRU"):
        read_restricted(tmp_path / "gru.pt")


def test_parts_that_are_missing_or_mistaken_are_named(tmp_path: Path) -> None:
    state, path = authors_layout.encoder_state(), tmp_path / "spatial_encoder.pt"

    def refused(change: dict[str, Tensor | None], message: str) -> None:
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        torch.save(changed, path)
        with pytest.raises(BundleError, match=message):
            read_spatial_encoder(path)

    refused({"styles.0.linear.weight": None}, r"spatial_encoder.pt.*'styles.0.linear.weight' is missing")
    refused({"body.9.res_layer.4.running_var": None}, r"'body.9.res_layer.4.running_var' has the shape None.*\(8,\)")
    refused({"latlayer1.bias": torch.zeros(3)}, r"'latlayer1.bias' has the shape \(3,\).*\(10,\)")
    refused({"extra": torch.zeros(1)}, r"'extra' has the shape \(1,\), the authors' layout None")
    refused({"latlayer1.bias": torch.full((10,), math.nan)}, "'latlayer1.bias' is not finite")
    embeddings = tmp_path / "embeddings.pt"
    authors_layout.write_embeddings(embeddings)
    with pytest.raises(BundleError, match="holds embeddings.*not a spatial encoder"):
        read_spatial_encoder(embeddings)
    torch.save(state, path)
    with pytest.raises(BundleError, match="lacks the key 'string_to_param'"):
        read_embeddings(path)
    authors_layout.write_embeddings(embeddings, ["*"])
    with pytest.raises(BundleError, match="holds a mask embedding"):
        read_embeddings(embeddings)
    authors_layout.write_embeddings(embeddings, ["crack"])
    with pytest.raises(BundleError, match="'crack', expected is object\\+defect"):
        read_embeddings(embeddings)
    authors_layout.write_embeddings(embeddings, width=16)
    with pytest.raises(BundleError, match="width 12, the tokens 16"):
        import_authors_files(path, embeddings)
    with pytest.raises(InputError, match="running statistics, batch statistics"):
        AuthorsEncoder.from_state(state, "none")
