"""The ablations: what each row changes, and that a trained model really lacks what the row says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.bundle import anomaly_context, load_bundle
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.published import load_table
from anomalydiffusion_core.evaluation.tables.build import build_table
from anomalydiffusion_core.evaluation.tables.records import ResultRecord, find_records, write_records
from anomalydiffusion_core.server.ablations import (
    EVALUATION_NODE,
    FULL,
    REDUCED,
    SAMPLER,
    TRAINING,
    label_results,
    variant_workflow,
    variants,
)
from anomalydiffusion_core.server.workflow import load_workflow, nodes_of_class
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings

pytestmark = pytest.mark.core

QUICKSTART = Path(__file__).resolve().parents[2] / "workflows" / "api" / "quickstart.json"


@pytest.mark.parametrize("protocol", [REDUCED, FULL], ids=lambda protocol: protocol.name)
def test_every_row_of_the_tables_has_one_variant(protocol: object) -> None:
    found = variants(protocol)  # type: ignore[arg-type]
    places = [place for variant in found for place in variant.places]
    expected = [(number, row) for number in (6, 7, 8, 9) for row in load_table(number).rows]
    expected += [(6, f"labels_{mode}") for mode in ("drop", "cut", "auto")]  # not in the paper
    assert sorted(places) == sorted(expected)
    assert len(found) == 14 + 3  # the full model of Tables 6, 8 and 9 is one run
    assert len({variant.name for variant in found}) == 14 + 3


def test_rows_change_what_they_say_and_nothing_else() -> None:
    base = load_workflow(QUICKSTART)
    by_row = {variant.places[0]: variant for variant in variants(REDUCED)}
    full = variant_workflow(base, REDUCED, by_row[6, "full"])

    def changes(table: int, row: str) -> dict[str, object]:
        changed = variant_workflow(base, REDUCED, by_row[table, row])
        assert changed.keys() == full.keys()
        return {
            key: value
            for node in full
            for key, value in changed[node]["inputs"].items()
            if full[node]["inputs"].get(key) != value
        }

    assert changes(6, "none") == {"encoder": "none", "masked_loss": False, "reweighting": "off"}
    assert changes(6, "sae") == {"masked_loss": False, "reweighting": "off"}
    assert changes(6, "sae_masked") == {"reweighting": "off"}
    assert changes(6, "masked_aar") == {"encoder": "none"}
    assert changes(7, "rate_10") == {"train_count": 2, "test_rate": 50}
    assert changes(7, "rate_50") == {"train_count": 13, "test_rate": 50}
    assert changes(8, "s8_a16") == {"spatial_tokens": 8, "anomaly_tokens": 16}
    assert changes(9, "ti_p2p") == {"encoder": "none", "masked_loss": False, "reweighting": "prompt-to-prompt"}
    labels = {"refine": "cut", "vae": ["1", 1], "dataset": ["2", 0]}
    changed = variant_workflow(base, REDUCED, by_row[6, "labels_cut"])
    assert changed["9"]["inputs"] == {**full["9"]["inputs"], **labels}, "the sampler's VAE and the test's data set"
    assert {key: value for key, value in changes(6, "labels_auto").items() if key == "refine"} == {"refine": "auto"}
    (evaluation,) = nodes_of_class(full, EVALUATION_NODE)
    assert full[evaluation]["inputs"]["generated_share"] == 1.0
    assert base == load_workflow(QUICKSTART)


def test_another_seed_moves_every_seed_but_that_of_the_detector() -> None:
    base = load_workflow(QUICKSTART)
    (variant,) = (variant for variant in variants(REDUCED, [9]) if variant.places == ((9, "full"),))
    first, second = (variant_workflow(base, REDUCED, variant, seed) for seed in (0, 1))
    moved = {node for node in first if first[node]["inputs"] != second[node]["inputs"]}
    assert sorted(moved) == ["3", "4", "5", "6", "8"]
    assert {second[node]["inputs"]["seed"] - first[node]["inputs"]["seed"] for node in moved} == {1000}


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="table: 5 is no ablation"):
        variants(REDUCED, [5])
    base = load_workflow(QUICKSTART)
    del base[nodes_of_class(base, SAMPLER)[0]]
    with pytest.raises(InputError, match=f"it has no node {SAMPLER}"):
        variant_workflow(base, REDUCED, variants(REDUCED)[0])
    base = load_workflow(QUICKSTART)
    base[nodes_of_class(base, TRAINING)[0]]["inputs"]["encoder"] = ["1", 0]
    with pytest.raises(InputError, match="'encoder' of node 3 is connected"):
        variant_workflow(base, REDUCED, variants(REDUCED)[0])
    for arguments, message in (
        (["--protocol", "half"], "unknown value 'half'"),
        (["--protocol", "full"], "full needs --workflow"),
        (["--data", "somewhere"], "renders its own images"),
        (["--set", "Nothing.steps=1"], "no node 'Nothing'"),
    ):
        done = CliRunner().invoke(app, ["ablate", "--out", "never_made", *arguments])
        assert done.exit_code == 1 and message in done.output, done.output
    assert not Path("never_made").exists()


def test_results_of_an_ablated_model_never_pass_as_ours(tmp_path: Path) -> None:
    values = {"pixel_auroc": [0.9], "pixel_ap": [0.5], "pixel_f1": [0.4], "pixel_pro": [0.8]}
    records = [
        ResultRecord("leather", "", "few real", values, [0]),
        ResultRecord("leather", "Ours", "generated", values, [0], {"steps": 9}, "rendered", False),
    ]
    write_records(tmp_path / "evaluation" / "results.json", records)
    (variant,) = (variant for variant in variants(REDUCED, [6, 8]) if (6, "full") in variant.places)
    labelled = label_results(tmp_path, variant, REDUCED)
    assert [(record.table, record.row) for record in labelled] == [(6, "full"), (8, "s4_a8")]
    assert find_records([tmp_path]) == label_results(tmp_path, variant, REDUCED)  # a second time changes nothing
    stored = find_records([tmp_path])
    assert build_table(stored, 6).cells["full", "", "pixel_ap"].text(1) == "81.4 / 50.0 (reduced)"
    assert build_table(stored, 8).cells["s4_a8", "", "pixel_pro"].text(1) == "94.0 / 80.0 (reduced)"
    assert not any(cell.measured for cell in build_table(stored, 10).cells.values())
    assert any("reduced (demo prior and rendered images" in note for note in build_table(stored, 6).footnotes)
    mixed = ResultRecord("leather", "Ours", "few real + generated", values, [0])
    write_records(tmp_path / "other" / "results.json", [mixed])
    with pytest.raises(InputError, match="generated pairs alone"):
        label_results(tmp_path / "other", variant, REDUCED)


def _trained(**changes: object) -> tuple[object, tuple[float, ...]]:
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 8:24, 16:40] = 1
    images = 0.4 + 0.2 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 0.3 * masks
    settings = InversionSettings(steps=2, resolution=64, augmented_copies=0, anomaly_tokens=3, **changes)  # type: ignore[arg-type]
    result = AnomalyTrainer(LdmDenoiser.random(0, context_dim=32), {"part/dent": (images, masks)}, settings).run()
    return result.bundle, result.losses


def test_without_spatial_embedding_only_the_anomaly_tokens_are_learned(tmp_path: Path) -> None:
    bundle, losses = _trained(encoder="none")
    assert all(loss > 0 for loss in losses)
    bundle.save(tmp_path / "plain.safetensors")  # type: ignore[attr-defined]
    back = load_bundle(tmp_path / "plain.safetensors")
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, :9, :9] = masks[1, :, 50:, 50:] = 1
    context = anomaly_context(back, "part/dent", masks)
    assert context.shape == (2, 3, 32) and torch.equal(context[0], context[1])  # it does not know where
    assert torch.equal(context[0], back.type_tokens("part/dent"))
    assert json.loads(json.dumps(back.metadata["encoder"])) == {"variant": "none", "tokens": 0}


def test_without_masked_loss_the_whole_image_counts() -> None:
    masked, whole = (_trained(masked_loss=value)[1][0] for value in (True, False))
    # the same noise and times: both are means over the whole latent, one of them of the inside only
    assert whole > 3 * masked > 0


def test_the_full_protocol_sets_what_the_paper_and_its_code_say() -> None:
    """Values of the paper (section 4.1 and supplement) and of the published code, each worked out from there."""
    base = load_workflow(QUICKSTART)
    base["3"]["inputs"]["masked_loss"] = False  # whatever a workflow was set to
    base["8"]["inputs"] |= {"cap": 1.1, "end_percent": 0.5, "difference": "previous step", "retries": 9}
    base["5"]["inputs"] |= {"smallest_area": 0.2, "border_rule": False}
    base["2"]["inputs"]["defects"] = "scratch"
    (full,) = (variant for variant in variants(FULL, [9]) if variant.places == ((9, "full"),))
    made = variant_workflow(base, FULL, full)

    def has(node: str, expected: dict[str, object]) -> None:
        found = made[node]["inputs"]
        assert {key: found.get(key) for key in expected} == expected

    # supplement: k 8, n 4, 4 pairs a step, 0.005, 300,000 steps; code: flips, half of the batches augmented
    training = {"anomaly_tokens": 8, "spatial_tokens": 4, "batch_size": 4, "learning_rate": 0.005, "steps": 300_000}
    has("3", {**training, "encoder": "resnet50_fpn", "masked_loss": True, "resolution": 256, "flips": True})
    has("3", {"augmented_copies": 1, "normalize_by_mask_area": False, "view": "whole image"})
    (options,) = [made[made["3"]["inputs"]["options"][0]]["inputs"]]
    assert (options["refresh_every"], options["sample_latents"], options["balance"]) == (1, True, "pictures")
    # supplement: 30,000 steps, 4 a step, 0.005; code: no augmentation, 100 steps at guidance 5, above 0.8 of -1 to 1
    has("4", {"steps": 30_000, "batch_size": 4, "learning_rate": 0.005, "augmented_copies": 0, "flips": False})
    assert made[made["4"]["inputs"]["options"][0]]["inputs"]["refresh_every"] == 0
    has("5", {"steps": 100, "cfg": 5.0, "count": 1000, "threshold": (0.8 + 1) / 2, "border_rule": True})
    has("5", {"smallest_area": 0.0, "largest_area": 1.0, "most_components": 0, "speck_area": 0.0, "shape_range": 0.0})
    # code: 200 steps of DDIM with eta 1, no guidance, no retries, no windows; paper: Eq. 7 on decoded images, no cap
    sampling = {"steps": 200, "cfg": 1.0, "sampler_name": "euler_ancestral", "scheduler": "ddim_uniform"}
    has("8", {**sampling, "denoise": 1.0, "reweighting": "paper", "difference": "decoded", "decode_every": 1})
    has(
        "8", {"cap": 1e6, "start_percent": 0.0, "end_percent": 1.0, "strength": 1.0, "temperature": 1.0, "crop": "off"}
    )
    has("8", {"retries": 0, "min_effect": 0.0, "feather": 0, "token_scope": "anomaly tokens"})
    has("6", {"count": 1000, "size": 256})
    has("9", {"min_effect": 0.0, "refine": "keep"})
    # code: base 64, Adam 1e-4, batch 8, 200 epochs of 500 // 8 + 1 steps, no augmentation
    detector = {"width": 64, "learning_rate": 1e-4, "batch_size": 8, "steps": 200 * (500 // 8 + 1), "size": 256}
    has("10", {**detector, "flips": False, "rotations": False, "any_angle": False, "generated_share": 1.0})
    has("2", {"defects": "", "test_rate": 0})
    for said in ("0.02", "16", "last step", "best epoch", "token route", "lowest third"):
        assert said in FULL.text, "what differs stands next to the number"


def test_every_input_that_the_full_protocol_sets_exists() -> None:
    """A misspelt input would be ignored or refused only on a GPU."""
    base = load_workflow(QUICKSTART)
    known = {node["class_type"]: set(node["inputs"]) for node in base.values()}
    for name, values in FULL.inputs.items():
        assert set(values) <= known[name], set(values) - known[name]


def test_ddim_with_eta_1_is_euler_ancestral() -> None:
    """Both leave x_prev = mean + noise with the same mean and deviation, by diffusers' DDIM and k-diffusion's rule."""
    from diffusers import DDIMScheduler

    ddim: Any = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    ddim.set_timesteps(200)
    generator = torch.Generator().manual_seed(0)
    x, eps, noise = (torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    for t in (995, 500, 5):
        theirs = ddim.step(eps, t, x, eta=1.0, variance_noise=noise).prev_sample
        a, before = (float(ddim.alphas_cumprod[time]) for time in (t, t - 5))
        sigma, to = (((1 - one) / one) ** 0.5 for one in (a, before))
        up = to * ((sigma**2 - to**2) / sigma**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        scaled = x / a**0.5
        ours = (scaled + eps * (down - sigma) + noise * up) * before**0.5
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_records_of_an_ablation_hold_every_setting(tmp_path: Path) -> None:
    values = {"pixel_ap": [0.5]}
    record = ResultRecord("leather", "Ours", "generated", values, [0], settings={"detector": {"steps": 9}})
    write_records(tmp_path / "results.json", [record])
    (variant,) = (variant for variant in variants(REDUCED, [9]) if variant.places == ((9, "full"),))
    workflow = variant_workflow(load_workflow(QUICKSTART), REDUCED, variant)
    label_results(tmp_path, variant, REDUCED, workflow)
    (found,) = find_records([tmp_path])
    assert found.settings["detector"] == {"steps": 9}
    assert found.settings[f"3 {TRAINING}"]["steps"] == 100
    assert "model" not in found.settings[f"3 {TRAINING}"], "connections are no settings"
    assert {"cfg", "steps", "sampler_name", "reweighting"} <= found.settings[f"8 {SAMPLER}"].keys()


def test_table_7_tests_every_rate_on_the_same_images() -> None:
    from anomalydiffusion_core.data.splits import SplitSettings

    names = [f"{number:03d}" for number in range(21)]
    tests = set()
    for variant in variants(FULL, [7]):
        values = next(iter(variant.inputs.values()))
        train, test = SplitSettings(**values).divide(names)
        assert not set(train) & set(test)
        tests.add(tuple(test))
    assert tests == {tuple(names[10:])}, "the last half, rounded up"
