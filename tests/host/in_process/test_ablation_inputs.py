"""What the ablations set exists: every node, every input, and values that the node takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

QUICKSTART = Path(__file__).resolve().parents[3] / "workflows" / "api" / "quickstart.json"


@pytest.mark.parametrize("name", ["reduced", "full"])
def test_every_ablation_sets_inputs_that_the_nodes_have(extension: Any, name: str) -> None:
    ablations = extension.module("anomalydiffusion_core.server.ablations")
    protocol = ablations.PROTOCOLS[name]
    workflow = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    for variant in ablations.variants(protocol):
        for node in ablations.variant_workflow(workflow, protocol, variant).values():
            schema = extension.nodes[node["class_type"]].define_schema()
            known = {part.id: part for part in schema.inputs}
            for key, value in node["inputs"].items():
                part = known[key]
                if getattr(part, "options", None) and isinstance(value, str) and not key.endswith("checkpoint"):
                    assert value in part.options or key in ("sampler_name", "scheduler"), (key, value)
                low, high = getattr(part, "min", None), getattr(part, "max", None)
                if isinstance(value, int | float) and low is not None and high is not None:
                    assert low <= value <= high, (key, value)


def test_without_encoder_and_mask_a_model_trains_and_samples(extension: Any, loaded: Any, dataset: Any) -> None:
    values = {"model": loaded.model, "vae": loaded.vae, "dataset": dataset, "name": "ablated", **extension.small}
    bundle = extension.run("TrainAnomalyEmbedding", **values, encoder="none", masked_loss=False).args[0]
    assert bundle.metadata["settings"]["masked_loss"] is False and bundle.spatial_encoder.tokens == 0
    image = extension.tensors.to_host_images(torch.full((1, 3, 64, 64), 0.5))
    mask = extension.box_mask()
    modes = ("off", "prompt-to-prompt")
    plain, replaced = (extension.blend(loaded, bundle, image, mask, reweighting=mode).args[0] for mode in modes)
    assert not torch.equal(plain, replaced)
    outside = mask[..., None].expand_as(plain) == 0
    assert bool((plain[outside] == replaced[outside]).all())
