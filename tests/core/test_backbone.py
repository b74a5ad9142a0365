"""The spatial encoder from a local file of ImageNet weights; random numbers stand in for them here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.bundle import load_bundle
from anomalydiffusion_core.conditioning.spatial_encoder import (
    build_spatial_encoder,
    load_backbone,
    start_from_backbone,
)
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

SETTINGS = InversionSettings(
    steps=1,
    batch_size=1,
    resolution=64,
    augmented_copies=0,
    anomaly_tokens=2,
    spatial_tokens=2,
    encoder="resnet50_fpn",
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A file of torchvision's layout with statistics that are not those of a fresh net."""
    torch.manual_seed(4)
    state = resnet50(weights=None).state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.copy_(torch.randn_like(value) * 0.1)
        elif name.endswith("running_var"):
            value.copy_(torch.rand_like(value) + 0.5)
    return state


def make_trainer(backbone: dict[str, torch.Tensor] | None, settings: InversionSettings = SETTINGS) -> AnomalyTrainer:
    masks = torch.zeros(1, 1, 64, 64)
    masks[:, :, 16:48, 8:40] = 1
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    denoiser = LdmDenoiser.random(0, context_dim=32)
    return AnomalyTrainer(denoiser, {"part/dent": (images, masks)}, settings, backbone=backbone)


def test_features_are_those_of_the_file_in_evaluation(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "resnet50.pth")
    backbone = load_backbone(tmp_path / "resnet50.pth")
    encoder = build_spatial_encoder("resnet50_fpn_imagenet", 2, 32)
    start_from_backbone(encoder, backbone)
    peer = resnet50(weights=None)
    peer.load_state_dict(weights)
    peer.eval()
    mask = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    with torch.no_grad():
        body = encoder.trunk.body
        for net in (peer, body):
            net.hidden = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(mask)))))
    torch.testing.assert_close(body.hidden, peer.hidden, rtol=1e-4, atol=1e-4)
    # The tokens of a mask do not depend on its batch mates.
    encoder.train()
    with torch.no_grad():
        torch.testing.assert_close(encoder(mask[:, :1])[:1], encoder(mask[:1, :1]), rtol=1e-4, atol=1e-5)


def test_training_starts_from_the_file_and_the_bundle_is_read_again(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file({name: value for name, value in weights.items() if value.ndim}, tmp_path / "resnet50.safetensors")
    trainer = make_trainer(load_backbone(tmp_path / "resnet50.safetensors"))
    encoder = trainer.module.encoder
    assert encoder is not None and torch.equal(encoder.trunk.body.conv1.weight, weights["conv1.weight"])
    trained = trainer.run().bundle
    trained.save(tmp_path / "bundle.safetensors")
    again = load_bundle(tmp_path / "bundle.safetensors").spatial_encoder
    assert again is not None and again.variant == "resnet50_fpn_imagenet"
    state = again.state_dict()
    assert torch.equal(state["trunk.body.bn1.running_mean"], weights["bn1.running_mean"]), "statistics stay frozen"
    assert not torch.equal(state["trunk.body.conv1.weight"], weights["conv1.weight"]), "weights learn"
    assert trained.spatial_encoder is not None
    assert all(torch.equal(value, state[name]) for name, value in trained.spatial_encoder.state_dict().items())


def test_files_that_are_no_resnet50_are_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({name: value for name, value in weights.items() if name != "layer3.2.conv2.weight"}, path)
    with pytest.raises(InputError, match=r"other.pth has layer3.2.conv2.weight of shape None.*\(256, 256, 3, 3\)"):
        load_backbone(path)
    torch.save({**weights, "conv1.weight": weights["conv1.weight"] * float("nan")}, path)
    with pytest.raises(InputError, match="conv1.weight.* in other.pth is not finite"):
        load_backbone(path)
    torch.save(resnet50(weights=None), path)  # a pickled module, which may run code
    with pytest.raises(InputError, match="other.pth asks for 'torchvision.models.resnet.ResNet'"):
        load_backbone(path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="other.pth cannot be read"):
        load_backbone(path)
    light = InversionSettings(steps=1, resolution=64, encoder="light")
    with pytest.raises(InputError, match="they are for the encoder resnet50_fpn, chosen is light"):
        make_trainer(dict(weights), light)
