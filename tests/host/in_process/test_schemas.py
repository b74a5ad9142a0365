"""Every node is described completely: schema, help page, translations."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _tool(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


words = _tool("words")
NAMES = {
    "LoadLDMCheckpoint": "Load LDM Checkpoint",
    "EncodeLDMCaption": "Encode LDM Caption",
    "LoadDataset": "Load Anomaly Dataset",
    "DatasetFromImages": "Dataset From Images",
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
    "ResultsTable": "Results Table",
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
    "RefineMasks": "Refine Masks",
    "ScorePairs": "Score Pairs",
    "ReviewPairs": "Review Pairs",
    "MergeDatasets": "Merge Datasets",
}
NODE_IDS = [f"AnomalyDiffusion{name}" for name in NAMES]


@pytest.fixture
def schemas(extension: Any) -> list[Any]:
    """Made anew, so that a test may change them."""
    return [node.define_schema() for node in extension.nodes.values()]


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


def test_translations_and_help_pages_hold_the_words_of_the_schemas(schemas: list[Any]) -> None:
    stale = [path.name for path in words.stale(schemas)]
    assert not stale, "run python tools/words.py"


def test_chinese_translation_lacks_nothing_and_has_nothing_in_excess(schemas: list[Any]) -> None:
    assert words.untranslated(schemas, "zh") == []


def test_every_help_page_has_an_image_typical_values_and_mistakes_in_both_languages(schemas: list[Any]) -> None:
    assert words.incomplete_pages(schemas) == []


def test_chinese_translation_is_chinese() -> None:
    texts = json.loads((words.LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    for entry in texts.values():
        told = [entry["display_name"], entry["description"]]
        told += [part["tooltip"] for part in (*entry["inputs"].values(), *entry["outputs"].values())]
        told += [label for part in entry["inputs"].values() for label in part.get("options", {}).values()]
        assert all(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in told), told


def test_every_help_page_is_that_of_a_node() -> None:
    assert sorted(path.stem for path in words.DOCS.glob("*.md")) == sorted(NODE_IDS)
    assert sorted(path.parent.name for path in words.DOCS.glob("*/zh.md")) == sorted(NODE_IDS), "zh.md for each"


def test_a_changed_tooltip_is_stale_in_both_places(schemas: list[Any]) -> None:
    schema = next(schema for schema in schemas if schema.node_id == "AnomalyDiffusionPickNormals")
    schema.inputs[1].tooltip = "New words."
    files = words.stale(schemas)
    assert [path.name for path in files] == ["nodeDefs.json", "AnomalyDiffusionPickNormals.md"]
    locale, page = files.values()
    assert json.loads(locale)["AnomalyDiffusionPickNormals"]["inputs"]["count"]["tooltip"] == "New words."
    assert "| `count` | New words. Default: 8. |" in page
    assert page.startswith("# Pick Normals\n") and page.index("## Outputs") < page.index("## Notes")


def test_missing_and_unknown_keys_of_a_translation_are_named(
    schemas: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = json.loads(words.english(schemas))
    del texts["AnomalyDiffusionPickNormals"]["inputs"]["seed"]["tooltip"]
    texts["AnomalyDiffusionGone"] = {"display_name": "Gone"}
    (tmp_path / "xx").mkdir()
    (tmp_path / "xx" / "nodeDefs.json").write_text(json.dumps(texts), encoding="utf-8")
    monkeypatch.setattr(words, "LOCALES", tmp_path)
    assert words.untranslated(schemas, "xx") == [
        "locales/xx/nodeDefs.json lacks AnomalyDiffusionPickNormals.inputs.seed.tooltip",
        "locales/xx/nodeDefs.json has in excess AnomalyDiffusionGone.display_name",
    ]


def test_a_new_node_gets_a_page_with_its_description(schemas: list[Any]) -> None:
    page = words.help_page("", schemas[0])
    assert page.startswith(f"# {schemas[0].display_name}\n\n{schemas[0].description}\n\n## Inputs\n")
    assert words.help_page(page + "\n## Notes\n\nBy hand.\n", schemas[0]).endswith("\n\n## Notes\n\nBy hand.\n")
