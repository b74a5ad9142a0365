"""Which model: the same in every number format, another one after a fine-tuning, and the LoRA as its second part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.bundle import AnomalyBundle
from anomalydiffusion_core.bundles.merging import merge_bundles
from anomalydiffusion_core.errors import BundleError, InputError
from anomalydiffusion_core.identity import (
    VALUES,
    Identity,
    check_identity,
    find_lora,
    lora_fingerprint,
    weights_fingerprint,
)
from anomalydiffusion_core.training.lora import Lora, adapted


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"in.weight": (64, 32, 3, 3), "in.bias": (64,), "out.weight": (16, 64), "norm.weight": (64,)}
    found = {name: torch.randn(shape, generator=generator) * 0.03 for name, shape in shapes.items()}
    return found | {"norm.weight": torch.ones(64)}


@pytest.mark.parametrize("form", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_a_number_format_makes_no_other_model(form: torch.dtype) -> None:
    own = weights()
    stored = {name: value.to(form) for name, value in own.items()}
    assert weights_fingerprint(stored) == weights_fingerprint(own)
    # What a file of one format becomes in another, as a server with --bf16-unet does with a half-precision file.
    again = {name: value.to(torch.bfloat16) for name, value in stored.items()}
    assert weights_fingerprint(again) == weights_fingerprint(own)
    assert weights_fingerprint(again, VALUES) != weights_fingerprint(own, VALUES)


def test_a_fine_tuned_model_another_shape_and_another_name_are_other_models() -> None:
    own, other = weights(), weights(1)
    tuned = {name: value + 0.01 * value.std() * torch.randn_like(value) for name, value in own.items()}
    renamed = {name.replace("in.", "first."): value for name, value in own.items()}
    reshaped = own | {"out.weight": own["out.weight"].reshape(64, 16)}
    louder = own | {"in.weight": own["in.weight"] * 2}
    assert len({weights_fingerprint(one) for one in (own, other, tuned, renamed, reshaped, louder)}) == 6


def lora(network: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    made = Lora(network, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pair in made.pairs:
            up = pair.up
            assert isinstance(up, Tensor)
            up.copy_(torch.randn(up.shape, generator=generator))
    return made.file_tensors()


def test_a_lora_is_the_same_in_any_format_and_order_but_not_at_another_strength() -> None:
    network = LdmDenoiser.random(0).unet
    own, other = lora(network, 0), lora(network, 1)
    half = {name: value.half() for name, value in reversed(own.items())}
    known = lora_fingerprint(own)
    assert lora_fingerprint(half) == known != lora_fingerprint(other)
    assert lora_fingerprint(own, 0.5) != known and lora_fingerprint(own, 0) == "" == lora_fingerprint({})
    doubled = {name: value * 2 if name.endswith(".alpha") else value for name, value in own.items()}
    assert lora_fingerprint(doubled) == lora_fingerprint(own, 2.0) != known
    layers = sum(name.endswith(".alpha") for name in own)
    assert known.startswith("lora:") and known.endswith(f"-{layers}")


def test_a_missing_another_and_a_superfluous_lora_are_errors_that_name_it() -> None:
    model = LdmDenoiser.random(0)
    own, other = lora(model.unet, 0), lora(model.unet, 1)
    bare, base = Identity(model.fingerprint(), ""), model.fingerprint()
    needed = Identity(base, lora_fingerprint(own), "normals_00001.safetensors")
    check_identity(model, bare, "bundle")
    with pytest.raises(InputError, match=r"bundle: .*normals_00001.*, this model has no LoRA\. Apply it.*--lora"):
        check_identity(model, needed, "bundle")
    with adapted(model, model.unet, own):
        assert model.fingerprint() == base, "the base model stays the same"
        check_identity(model, needed, "bundle")
        check_identity(model, Identity(base), "bundle")  # of an older version, which did not record it
        with pytest.raises(InputError, match="trained with no LoRA, this model has the LoRA lora:"):
            check_identity(model, bare, "bundle")
    with adapted(model, model.unet, other), pytest.raises(InputError, match="normals_00001"):
        check_identity(model, needed, "bundle")
    assert model.adaptation() == ""


def test_bundles_of_older_versions_are_still_checked_by_their_own_rule() -> None:
    model, another = LdmDenoiser.random(0), LdmDenoiser.random(1)
    old = weights_fingerprint(model.unet.state_dict(), VALUES)
    assert ":" not in old
    check_identity(model, Identity.of({"base_fingerprint": old}), "bundle")
    with pytest.raises(InputError, match=old):
        check_identity(another, Identity.of({"base_fingerprint": old}), "bundle")
    check_identity(another, Identity.of({}), "bundle")


def test_a_lora_file_is_found_under_another_name_and_never_by_its_name_alone(tmp_path: Path) -> None:
    network = LdmDenoiser.random(0).unet
    own, other = lora(network, 0), lora(network, 1)
    wanted = Identity("", lora_fingerprint(own), "normals_00001.safetensors")
    save_file(other, tmp_path / "normals_00001.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"damaged")
    assert find_lora(tmp_path.iterdir(), wanted) is None
    save_file({name: value.half() for name, value in own.items()}, tmp_path / "renamed.safetensors")
    assert find_lora(tmp_path.iterdir(), wanted) == tmp_path / "renamed.safetensors"
    assert find_lora(tmp_path.iterdir(), Identity("", "")) is None


def test_a_bundle_says_which_lora_it_needs_and_merges_only_with_its_like() -> None:
    metadata = Identity("2:f00", "lora:ab-3", "normals_00001.safetensors").metadata()
    mine = AnomalyBundle("mask", {"x/a": torch.zeros(2, 8)}, None, metadata)
    assert "trained with the LoRA normals_00001.safetensors (lora:ab-3)" in mine.summary()
    assert Identity.of(mine.metadata) == mine.base
    bare = AnomalyBundle("mask", {"x/b": torch.zeros(2, 8)}, None, Identity("2:f00", "").metadata())
    assert "LoRA" not in bare.summary()
    with pytest.raises(BundleError, match="LoRA: one has lora:ab-3, two has none"):
        merge_bundles({"one": mine, "two": bare})
