"""What nodes say to the page: what stays behind a button, what search finds, what is cached, what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
MOST_WIDGETS = 9


def specs(node: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Inputs as ComfyUI writes them for the page: name -> (type, options)."""
    made = node.GET_NODE_INFO_V1()["input"]
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {})
        for group in ("required", "optional")
        for name, spec in made.get(group, {}).items()
    }


def is_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind in WIDGETS


def test_no_node_shows_more_than_a_handful_of_widgets(extension: Any) -> None:
    for node_id, node in extension.nodes.items():
        shown = [name for name, (kind, more) in specs(node).items() if is_widget(kind) and not more.get("advanced")]
        assert len(shown) <= MOST_WIDGETS, (node_id, shown)


def test_only_widgets_are_advanced_and_what_has_to_be_set_is_not(extension: Any) -> None:
    for node in extension.nodes.values():
        for kind, more in specs(node).values():
            assert is_widget(kind) or not more.get("advanced")
    assert "advanced" not in specs(extension.nodes["AnomalyDiffusionLoadDataset"])["folder"][1]
    assert specs(extension.nodes["AnomalyDiffusionBlendedAARKSampler"])["cap"][1]["advanced"] is True


# The order that workflows saved with version 0.1 hold the values in; new widgets may only follow.
SAVED = {
    "BlendedAARKSampler": (
        "seed steps cfg sampler_name scheduler batch_size denoise reweighting strength feather control_samples "
        "foreground_overlap crop crop_cells crop_margin crop_size min_effect retries grey_lock cap start_percent "
        "end_percent difference decode_every token_scope temperature raw_difference"
    ),
    "MaskEmbeddingSampler": (
        "defect_type count size seed steps cfg sampler_name scheduler batch_size threshold smallest_area "
        "largest_area most_components speck_area fill_holes border_rule tries foreground_overlap allowed_overlap"
    ),
    "EvaluateLocalization": (
        "pairs size width steps batch_size learning_rate flips rotations generated_share runs seed folder "
        "training_sets methods selection check_every weights defect_type any_angle"
    ),
    "TrainAnomalyEmbedding": (
        "name steps batch_size learning_rate resolution augmented_copies flips seed anomaly_tokens spatial_tokens "
        "encoder normalize_by_mask_area template initial_words encoder_weights masked_loss"
    ),
    "LoadLDMCheckpoint": "checkpoint",
}


@pytest.mark.parametrize("name", SAVED)
def test_workflows_saved_with_version_0_1_find_their_values(extension: Any, name: str) -> None:
    widgets = [key for key, (kind, _) in specs(extension.nodes[f"AnomalyDiffusion{name}"]).items() if is_widget(kind)]
    expected = SAVED[name].split()
    assert widgets[: len(expected)] == expected


@pytest.mark.parametrize(
    "word", ["defect", "MVTec", "segmentation", "inpaint", "scratch", "few-shot", "synthetic", "augmentation"]
)
def test_search_finds_a_node(extension: Any, word: str) -> None:
    schemas = [node.define_schema() for node in extension.nodes.values()]
    if not hasattr(schemas[0], "search_aliases"):
        pytest.skip("this ComfyUI has no search aliases")
    assert all(schema.search_aliases for schema in schemas)
    assert any(word.lower() in alias.lower() for schema in schemas for alias in schema.search_aliases)


def test_fingerprints_are_texts_when_their_inputs_are_connected(extension: Any) -> None:
    # As ComfyUI calls them then: None, or (None,) for a node that takes lists. Anything else is run every time.
    for node_id, node in extension.nodes.items():
        if "fingerprint_inputs" not in vars(node):
            continue
        unknown: Any = (None,) if node.define_schema().is_input_list else None
        values = dict.fromkeys(specs(node), unknown)
        assert isinstance(node.fingerprint_inputs(**values), str), node_id


def test_a_fingerprint_follows_the_pairs(extension: Any, tmp_path: Path) -> None:
    (tmp_path / "000.png").write_bytes(b"1")
    for name in ("EvaluateLocalization", "EvaluateClassification", "EvaluateGeneration"):
        node = extension.nodes[f"AnomalyDiffusion{name}"]
        pairs: Any = [str(tmp_path)] if node.define_schema().is_input_list else str(tmp_path)
        before = node.fingerprint_inputs(pairs=pairs)
        assert before and node.fingerprint_inputs(pairs=pairs) == before
        (tmp_path / f"{name}.png").write_bytes(b"2")
        assert node.fingerprint_inputs(pairs=pairs) != before


def test_a_missing_folder_is_told_before_anything_runs(extension: Any, data: Path) -> None:
    check = extension.nodes["AnomalyDiffusionLoadDataset"].validate_inputs
    assert check(folder=str(data), category="part") is True
    assert check(folder=None, category="part") is True, "connected, not known yet"
    assert "nowhere" in check(folder="nowhere", category="part")
    assert "gone" in check(folder=str(data), category="gone")


def test_errors_have_a_plain_name_in_the_page(extension: Any) -> None:
    # What ComfyUI's full_type_name makes of it.
    for kind in (extension.errors.InputError, extension.errors.DatasetError, extension.errors.TrainingError):
        assert f"{kind.__module__}.{kind.__qualname__}" == f"anomalydiffusion.{kind.__name__}"


def test_a_stopped_training_says_so_wherever_its_bundle_is_loaded(extension: Any, bundle: Any) -> None:
    from dataclasses import replace

    assert "stopped" not in bundle.summary()
    partial = replace(bundle, metadata={**bundle.metadata, "stopped_at_step": 2})
    steps = bundle.metadata["settings"]["steps"]
    assert f"Warning: its training was stopped after step 2 of {steps}" in partial.summary()


def test_progress_text_goes_to_the_page_that_queued(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []

    class Server:
        client_id: str | None = "page"

        def send_progress_text(self, *arguments: Any) -> None:
            sent.append(arguments)

    server = Server()
    progress = extension.module("nodes.host.progress")
    module = type("server", (), {"PromptServer": type("PromptServer", (), {"instance": server})})
    monkeypatch.setitem(progress.sys.modules, "server", module)
    monkeypatch.setattr(progress, "get_executing_context", lambda: type("Context", (), {"node_id": "5"}))
    progress.Progress(3).text("half")
    server.client_id = None
    progress.Progress(3).text("nobody asked")
    assert sent == [("half", "5", "page")]


def test_one_choice_loads_stable_diffusion_with_its_captions(extension: Any, diffusion: Any, stock: Any) -> None:
    model, vae, empty, normal, clip = extension.run(
        "LoadLDMCheckpoint", checkpoint="slim.safetensors", normal_caption="a photo of a nut"
    ).args
    assert torch.equal(empty[0][0], diffusion.empty[0][0])
    assert torch.equal(normal[0][0], stock("CLIPTextEncode", diffusion.clip, "a photo of a nut")[0][0][0])
    word = extension.run("EncodeLDMCaption", checkpoint="tiny.safetensors", caption="scratch", clip=clip).args[0]
    assert torch.equal(word[0][0], stock("CLIPTextEncode", diffusion.clip, "scratch")[0][0][0])
    assert model.model.model_config.unet_config["context_dim"] == 768 and vae is not None


def test_sampler_shows_before_after_and_mask(extension: Any) -> None:
    figures = extension.module("anomalydiffusion_core.figures")
    before, after = torch.zeros(1, 3, 32, 32), torch.full((2, 3, 32, 32), 0.5)
    masks = torch.zeros(2, 1, 32, 32)
    masks[:, :, 8:16, 8:16] = 1
    sheet = figures.comparison_sheet(before, after, masks, cell=32)
    top, left = figures.LABEL + 2 * figures.GAP, figures.GAP
    first = sheet[:, top : top + 32, left : left + 32]
    assert torch.allclose(first[:, 0, 0], torch.zeros(3)) and first[0, 7, 10] == 1, "outlined just outside the mask"
    second = sheet[:, top : top + 32, left + 36 : left + 68]
    assert torch.allclose(second, torch.full_like(second, 128 / 255), atol=1e-3)
    third = sheet[:, top : top + 32, left + 72 : left + 104]
    assert third[0, 12, 12] == 1 and third[0, 2, 2] == 0


def test_reports_of_lists_are_kept_one_after_another(extension: Any, dataset: Any) -> None:
    shown = extension.run("PickNormals", dataset=dataset, count=2, size=0).ui
    assert shown["text"] == ["2 normal images of 64 x 64 px"] and len(shown["images"]) == 2
    json.dumps(dict(shown))
