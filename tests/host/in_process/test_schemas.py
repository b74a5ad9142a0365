"""Every node is described completely: schema, help page, translations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
NAMES = {
    "LoadLDMCheckpoint": "Load LDM Checkpoint",
    "EncodeLDMCaption": "Encode LDM Caption",
    "LoadDataset": "Load Anomaly Dataset",
    "PickNormals": "Pick Normals",
    "TrainAnomalyEmbedding": "Train Anomaly Embedding",
    "TrainMaskEmbedding": "Train Mask Embedding",
    "TrainingOptions": "Training Options",
    "LoadSpatialEncoder": "Load Spatial Encoder",
    "SpatialAnomalyEmbedding": "Spatial Anomaly Embedding",
    "MaskEmbeddingSampler": "Mask Embedding Sampler",
    "VaryRealMasks": "Vary Real Masks",
    "ProceduralMasks": "Procedural Masks",
    "EstimateForeground": "Estimate Foreground",
    "PlaceMasks": "Place Masks",
    "MaskDiversityReport": "Mask Diversity Report",
    "BlendedAARKSampler": "Blended AAR KSampler",
    "ExportPairs": "Export Pairs",
    "EvaluateLocalization": "Evaluate Localization",
    "MergeBundles": "Merge Bundles",
    "SaveTextualInversion": "Save Textual Inversion",
    "AdaptToNormals": "Adapt to Normals",
    "EvaluateClassification": "Evaluate Classification",
    "EvaluateGeneration": "Evaluate Generation",
    "CropAndPaste": "Crop and Paste",
    "CutPaste": "CutPaste",
    "DraemAnomalies": "DRAEM Anomalies",
    "PrnAnomalies": "PRN Anomalies",
    "PoissonBlending": "Poisson Blending",
}
NODE_IDS = [f"AnomalyDiffusion{name}" for name in NAMES]


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_schema_is_complete(extension: Any, node_id: str) -> None:
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


def test_there_are_these_nodes_and_no_others(extension: Any) -> None:
    assert sorted(extension.nodes) == sorted(NODE_IDS)


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_help_page_names_every_input_and_output(extension: Any, node_id: str) -> None:
    schema = extension.nodes[node_id].define_schema()
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    for part in schema.inputs:
        assert f"| `{part.id}` | " in page and part.tooltip in page, part.id
    for part in schema.outputs:
        assert f"| {part.display_name} | {part.tooltip} |" in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_translations_are_complete(extension: Any, language: str) -> None:
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert sorted(texts) == sorted(NODE_IDS)
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
