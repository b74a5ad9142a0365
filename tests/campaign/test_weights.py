"""Mutated and malicious files of weights: read, or refused by name; never run, never for long, never large."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authors_layout
import pytest
import torch
from attacks import Campaign, changed, damaged
from safetensors.torch import load_file, save

from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.bundles.authors_files import read_embeddings, read_spatial_encoder
from anomalydiffusion_core.bundles.bundle import AnomalyBundle, anomaly_tokens, load_bundle
from anomalydiffusion_core.bundles.listing import list_bundles
from anomalydiffusion_core.conditioning.spatial_encoder import build_spatial_encoder, load_backbone
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.evaluation.classification.network import _load as load_classifier
from anomalydiffusion_core.evaluation.localization.network import load_network
from anomalydiffusion_core.restricted_pickle import read_restricted
from anomalydiffusion_core.store import stored_metadata
from anomalydiffusion_core.training.lora import load_lora
from anomalydiffusion_core.training.state import read_state

MEMORY = 1_500_000  # kB that all attempts together may add
PICKLE_READERS: list[Callable[[Path], Any]] = [
    read_restricted, read_spatial_encoder, read_embeddings, load_backbone, load_network, read_state,
]  # fmt: skip


def use_bundle(path: Path) -> None:
    """Read a bundle and use it as a node would."""
    loaded = load_bundle(path)
    assert all(bool(rows.isfinite().all()) for rows in loaded.tokens.values())
    loaded.summary()
    if loaded.spatial_encoder is not None:
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 8:20, 8:20] = 1
        anomaly_tokens(loaded, loaded.types[0], mask)


def mutated_safetensors(campaign: Campaign, count: int, folder: Path) -> None:
    rows = torch.arange(32.0).view(2, 16) / 32
    settings = {"settings": {"resolution": 64}, "losses": [0.5, 0.25], "base_fingerprint": "2:x", "content_key": "k"}
    whole = AnomalyBundle("anomaly", {"a/b": rows, "a/c": rows}, build_spatial_encoder("light", 2, 16), settings)
    bundle = whole.to_bytes()
    (folder / "whole.safetensors").write_bytes(bundle)
    tensors = load_file(folder / "whole.safetensors")
    metadata = stored_metadata(folder / "whole.safetensors")
    tiny = LdmDenoiser.random(0, context_dim=16)
    store(folder / "prior.safetensors", tiny.autoencoder, tiny.unet, tiny.words, {}, "epsilon")
    prior = (folder / "prior.safetensors").read_bytes()
    path = folder / "x.safetensors"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        kind = number % 5
        if kind < 2:
            path.write_bytes(damaged(bundle, campaign.random))
        elif kind < 4:
            text = json.dumps(changed(metadata, campaign.random))
            path.write_bytes(save(tensors, {"anomalydiffusion": text}))
        else:
            path.write_bytes(damaged(prior, campaign.random))
        readers = (load_ldm,) if kind == 4 else (use_bundle, stored_metadata, load_lora)
        for read in readers:
            campaign.attempt(f"{number} {read.__name__}", lambda read=read: read(path), "x.safetensors")
        found, left_out = list_bundles(folder)
        if len(found) + len(left_out) != 3:
            campaign.fell_short(str(number), "one bad file hides others")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > MEMORY:
        campaign.fell_short("memory", f"{grown / 1e6:.1f} GB more")


class _Call:
    def __init__(self, function: Callable[..., Any], *values: Any) -> None:
        self.function, self.values = function, values

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.values


def malicious(campaign: Campaign, canary: Path) -> bytes:
    """A file of torch.save, in either format, that would leave ``canary``, take all memory, or never end."""
    rng = campaign.random
    writes = f"open({str(canary)!r}, 'w').close()"
    calls: list[Any] = [
        _Call(os.system, f"touch {canary}"),
        _Call(exec, writes),
        _Call(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
        _Call(__import__, "antigravity"),
        _Call(getattr, 1, "real"),
        _Call(bytearray, 20 * 10**9),
        _Call(torch.zeros, 10**10),
        _Call(Path(canary).touch),
        _Call(os.unlink, str(canary.parent)),
        _Call(map, os.system, [f"touch {canary}"]),
    ]
    call = rng.choice(calls)
    state = {**authors_layout.encoder_state(), "extra": call}
    content: Any = rng.choice([call, state, {"string_to_param": call}, {"string_to_param": {"a+b": call}}, [call]])
    if rng.random() < 0.2:
        return pickle.dumps(content, rng.randrange(6))
    if rng.random() < 0.3:
        program = rng.choice(
            [
                b"\x80\x02}K\x01" + b"2\x86" * rng.randint(30, 90) + b"K\x00s.",
                b"\x80\x05\x96" + (20 * 10**9).to_bytes(8, "little") + b".",
                b"\x80\x02K\x01r" + b"\xff\xff\xff\xff" + b".",
                b"\x80\x02]" + b"2a" * rng.randint(10, 5000) + b".",
                b"(" * 100_000 + b".",
                b"\x80\x02cos\nsystem\n(X" + len(f"touch {canary}").to_bytes(4, "little") + f"touch {canary}".encode(),
                b"ios\nsystem\n.",
                b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
            ]
        )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", program)
        return buffer.getvalue()
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.5)
    return buffer.getvalue()


def malicious_pickles(campaign: Campaign, count: int, folder: Path) -> None:
    canary = folder / "was_run"
    path = folder / "x.pt"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        content = malicious(campaign, canary)
        path.write_bytes(damaged(content, campaign.random) if number % 10 == 9 else content)
        for read in PICKLE_READERS:
            campaign.attempt(f"{number} {read.__name__}", lambda read=read: read(path), "x.pt")
        campaign.attempt(f"{number} classifier", lambda: load_classifier(torch.nn.Linear(1, 1), path, "x", 1), "x.pt")
        if canary.exists() or not folder.is_dir():
            campaign.fell_short(str(number), "was run")
            canary.unlink(missing_ok=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > MEMORY:
        campaign.fell_short("memory", f"{grown / 1e6:.1f} GB more")


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_safetensors(count: int, tmp_path: Path) -> None:
    campaign = Campaign(f"{count} mutated safetensors")
    mutated_safetensors(campaign, count, tmp_path)
    campaign.end()


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_malicious_pickles(count: int, tmp_path: Path) -> None:
    campaign = Campaign(f"{count} malicious pickles")
    malicious_pickles(campaign, count, tmp_path)
    campaign.end()
