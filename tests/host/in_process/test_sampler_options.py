"""Blended AAR KSampler: windows around small masks, drawing again, foreground, grey images, ten cycles, stopping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch


def dot(height: int, width: int, top: int, left: int, side: int = 3) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top : top + side, left : left + side] = 1
    return mask


@pytest.fixture(scope="module")
def bundle(bundle: Any) -> Any:
    """A bundle of a time when the scale was not recorded: what is sampled in a window is up to the settings alone."""
    metadata = {key: value for key, value in bundle.metadata.items() if key != "scale"}
    return replace(bundle, metadata=metadata)


def test_a_small_mask_is_drawn_in_a_window_and_nothing_else_changes(extension: Any, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 150, 201, 3), dot(150, 201, 70, 90)
    whole = extension.blend(loaded, bundle, image, mask, crop="off")
    images, masks, latent, effects, report = extension.blend(loaded, bundle, image, mask, crop_margin=13).args
    # 3 px and 13 px on each side are 29 px around (71, 91), enlarged to the 64 px that the bundle was trained at.
    assert effects[0]["window"] == [57, 77, 29, 29] and "1 sampled in a window" in report
    assert whole.args[3][0]["window"] is None and "in a window" not in whole.args[4]
    outside = (mask == 0)[..., None].expand_as(images)
    assert torch.equal(images[outside], image[outside]) and torch.equal(masks, mask)
    assert not torch.equal(images, whole.args[0])
    # the latent is that of the finished image, padded to 152 x 208
    padded = torch.nn.functional.pad(images.movedim(-1, 1), (0, 7, 0, 2), mode="reflect").movedim(1, -1)
    torch.testing.assert_close(latent["samples"], extension.encoded(loaded, padded), rtol=0, atol=1e-4)


def test_large_masks_are_not_cropped_unless_asked_for(extension: Any, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 80, 80, 3), extension.box_mask(1, (80, 80))
    assert extension.blend(loaded, bundle, image, mask).args[3][0]["window"] is None
    always = extension.blend(loaded, bundle, image, mask, crop="always", crop_margin=5)
    assert always.args[3][0]["window"] == [0, 5, 40, 40]
    # 18 x 30 px touch 3 x 4 cells
    assert extension.blend(loaded, bundle, image, mask, crop_cells=13, crop_margin=5).args[3][0]["window"] is not None
    assert extension.blend(loaded, bundle, image, mask, crop_cells=12, crop_margin=5).args[3][0]["window"] is None


def test_the_embedding_of_a_window_is_made_for_its_mask(extension: Any, loaded: Any, bundle: Any) -> None:
    core = extension.module("anomalydiffusion_core.bundles.bundle")
    mask = dot(150, 201, 70, 90)
    embed = {"bundle": bundle, "defect_type": "part/dot"}
    positive = extension.run("SpatialAnomalyEmbedding", mask=mask, **embed).args[0]
    other = extension.box_mask(2)
    conditioning = extension.module("nodes.host.conditioning")
    combined = [
        [torch.cat([positive[0][0], torch.ones(1, 3, 128)], dim=1), positive[0][1]],
        [torch.zeros(1, 5, 128), {}],
    ]
    made = conditioning.ComfyConditioning(combined).for_masks(other[:, None]).entries
    expected = core.anomaly_context(bundle, "part/dot", other[:, None])
    assert torch.equal(made[0][0][:, :-3], expected)
    assert bool((made[0][0][:, -3:] == 1).all()) and torch.equal(made[1][0], torch.zeros(1, 5, 128))


def test_windows_do_not_depend_on_the_batch(extension: Any, loaded: Any, bundle: Any) -> None:
    image = torch.rand(1, 96, 120, 3)
    masks = torch.cat([dot(96, 120, 40, 50), extension.box_mask(1, (96, 120)), dot(96, 120, 5, 100, 5)])
    together = extension.blend(loaded, bundle, image, masks, crop_margin=10, seed=3)
    windows = [entry["window"] for entry in together.args[3]]
    assert windows[0] == [30, 40, 23, 23] and windows[1] is None and windows[2] == [0, 90, 25, 25]
    for place in range(3):
        alone = extension.blend(loaded, bundle, image, masks[place : place + 1], crop_margin=10, seed=3 + place)
        torch.testing.assert_close(together.args[0][place], alone.args[0][0], rtol=0, atol=1e-3)
        torch.testing.assert_close(together.args[2]["samples"][place], alone.args[2]["samples"][0], rtol=0, atol=0.05)


def test_no_windows_where_the_conditioning_has_places(extension: Any, loaded: Any, bundle: Any, stock: Any) -> None:
    image, mask = torch.rand(1, 96, 96, 3), dot(96, 96, 40, 50)
    positive = extension.run("SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/dot", mask=mask).args[0]
    placed = stock("ConditioningSetArea", positive, 96, 64, 0, 16, 1.0)[0]
    result = extension.blend(loaded, bundle, image, mask, positive=placed)
    assert (
        result.args[3][0]["window"] is None
        and "(area), so whole images were sampled at their own size" in result.args[4]
    )
    with pytest.raises(extension.errors.InputError, match="crop: always is not possible.*area"):
        extension.blend(loaded, bundle, image, mask, positive=placed, crop="always")


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes_masks_and_batches(extension: Any, loaded: Any, bundle: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    height, width, count = draw(8, 70), draw(8, 70), draw(1, 4)
    normals = torch.rand(count if draw(0, 2) else 1, height, width, 3, generator=generator)
    masks = (
        torch.rand(count if len(normals) == 1 or draw(0, 2) else 1, height, width, generator=generator) > 0.97
    ) * 1.0
    masks[:, draw(0, height), draw(0, width)] = 1
    denoise = 0.5 + draw(0, 6) / 10
    mode = ("off", "monotone", "paper", "authors")[draw(0, 4)]
    chosen = {
        "denoise": denoise,
        "reweighting": mode,
        "feather": draw(0, 5),
        "crop": ("auto", "always", "off")[draw(0, 3)],
    }
    images, out, _, effects, _ = extension.blend(loaded, bundle, normals, masks, seed=seed, steps=3, **chosen).args
    total = max(len(normals), len(masks))
    assert images.shape == (total, height, width, 3) and len(effects) == total
    assert torch.equal(out, masks.expand(total, -1, -1))
    changed = (images != normals).any(dim=-1)
    assert not bool((changed & (out == 0)).any())
    assert set(out.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("size", [(8, 8), (8, 13), (9, 31), (17, 8)])
def test_smallest_sizes(extension: Any, loaded: Any, bundle: Any, size: tuple[int, int]) -> None:
    image, mask = torch.rand(1, *size, 3), torch.zeros(1, *size)
    mask[0, 2:5, 3:6] = 1
    for crop in ("off", "auto"):
        images = extension.blend(loaded, bundle, image, mask, crop=crop).args[0]
        assert images.shape == image.shape
        assert torch.equal(images[mask == 0], image[mask == 0])


@pytest.mark.parametrize("eight_bit", [False, True])
def test_ten_cycles_leave_the_outside_as_it_was(extension: Any, loaded: Any, bundle: Any, eight_bit: bool) -> None:
    start = (torch.rand(1, 45, 60, 3) * 255).round() / 255 if eight_bit else torch.rand(1, 45, 60, 3)
    mask = torch.zeros(1, 45, 60)
    mask[0, 12:30, 14:41] = 1
    mask[0, 40, 50] = 1
    image = start
    for cycle in range(10):
        image = extension.blend(loaded, bundle, image, mask, seed=cycle).args[0]
        if eight_bit:
            image = (image * 255).round().to(torch.uint8).float() / 255
    assert torch.equal(image[mask == 0], start[mask == 0])
    assert bool((image[mask == 1] != start[mask == 1]).any(dim=-1).float().mean() > 0.9)


def test_weak_samples_are_drawn_again_with_other_seeds(extension: Any, loaded: Any, bundle: Any) -> None:
    image, masks = torch.rand(1, 64, 64, 3), extension.box_mask(3)
    once = extension.blend(loaded, bundle, image, masks, seed=7)
    scores = [entry["effect_score"] for entry in once.args[3]]
    weakest = min(range(3), key=scores.__getitem__)
    limit = sorted(scores)[0] + 0.01
    again = extension.blend(loaded, bundle, image, masks, seed=7, min_effect=limit, retries=3)
    for place, entry in enumerate(again.args[3]):
        if place != weakest:
            assert (entry["tries"], entry["seed"]) == (1, 7 + place)
            torch.testing.assert_close(again.args[0][place], once.args[0][place], rtol=0, atol=1e-4)
    entry = again.args[3][weakest]
    assert entry["tries"] in (2, 3, 4) and entry["effect_score"] >= scores[weakest]
    assert "1 retried" in again.args[4]
    # Drawn alone with the seed in the record it is the same.
    alone = extension.blend(loaded, bundle, image, masks[weakest : weakest + 1], seed=entry["seed"])
    torch.testing.assert_close(again.args[0][weakest], alone.args[0][0], rtol=0, atol=1e-4)
    # Out of reach: the tries are bounded, the best one is kept, and the report says so.
    never = extension.blend(loaded, bundle, image, masks, seed=7, min_effect=255.0, retries=2)
    assert [entry["tries"] for entry in never.args[3]] == [3, 3, 3]
    assert "3 still below" in never.args[4]
    assert all(kept["effect_score"] >= score for kept, score in zip(never.args[3], scores, strict=True))


def test_tries_have_seeds_of_their_own(extension: Any) -> None:
    retry = extension.module("anomalydiffusion_core.sampling.retry")
    largest = extension.progress.LARGEST_SEED
    assert retry.retry_seed(11, 0) == 11
    seeds = {retry.retry_seed(seed, attempt) for seed in range(1000) for attempt in range(21)}
    assert len(seeds) == 21000 and min(seeds) >= 0
    assert 0 <= retry.retry_seed(largest, 20) <= largest


def test_masks_are_cut_to_the_foreground(extension: Any, loaded: Any, bundle: Any) -> None:
    image, masks, ground = torch.rand(1, 64, 64, 3), extension.box_mask(2), torch.zeros(1, 64, 64)
    ground[:, 20:, :25] = 1
    images, out, *_ = extension.blend(loaded, bundle, image, masks, foreground=ground).args
    assert torch.equal(out, masks * ground)
    assert torch.equal(images[out == 0], image.expand_as(images)[out == 0])
    # Box 0 covers rows 8 to 25 and columns 10 to 39, 18 x 30 px; 6 x 15 of them lie on the foreground, 0.17.
    with pytest.raises(extension.errors.InputError, match="entry 0 of 2 of mask lies on it by 0.17, less than 0.2"):
        extension.blend(loaded, bundle, image, masks, foreground=ground, foreground_overlap=0.2)
    off = torch.zeros(1, 64, 64)
    off[:, 27:, :] = 1
    with pytest.raises(extension.errors.InputError, match="entry 0 of 2 of mask does not lie on it at all"):
        extension.blend(loaded, bundle, image, masks, foreground=off)
    with pytest.raises(extension.errors.InputError, match="3 masks for 2 samples"):
        extension.blend(loaded, bundle, image, masks, foreground=off.expand(3, -1, -1))
    with pytest.raises(extension.errors.InputError, match="foreground: entry 0 of 1 is empty"):
        extension.blend(loaded, bundle, image, masks, foreground=torch.zeros(1, 64, 64))


def test_grey_images_stay_grey_on_request(extension: Any, loaded: Any, bundle: Any) -> None:
    grey = torch.rand(1, 64, 64, 1).expand(-1, -1, -1, 3)
    images = torch.cat([grey, torch.rand(1, 64, 64, 3)])
    mask = extension.box_mask()

    def coloured(values: torch.Tensor) -> list[bool]:
        return [bool((image != image[..., :1]).any()) for image in values]

    free = extension.blend(loaded, bundle, images, mask).args[0]
    locked = extension.blend(loaded, bundle, images, mask, grey_lock=True).args[0]
    assert coloured(free) == [True, True] and coloured(locked) == [False, True]
    assert torch.equal(locked[1], free[1])
    # where the mask is all there is (no feather), grey is the mean of what was drawn
    inside = extension.blend(loaded, bundle, images[:1], mask, feather=0).args[0][0][mask[0] == 1]
    same = extension.blend(loaded, bundle, images[:1], mask, feather=0, grey_lock=True).args[0][0][mask[0] == 1]
    torch.testing.assert_close(same[:, 0], inside.mean(dim=1), rtol=0, atol=1e-6)


def test_less_denoising_stays_nearer_to_the_image(extension: Any, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 64, 64, 3), extension.box_mask()
    scene = {"steps": 4, "reweighting": "monotone"}
    y0 = extension.encoded(loaded, image)
    full, little = (
        extension.blend(loaded, bundle, image, mask, denoise=denoise, **scene).args[2]["samples"]
        for denoise in (1.0, 0.1)
    )
    assert float((little - y0).abs().mean()) < 0.5 * float((full - y0).abs().mean())


def test_two_runs_give_the_same_bytes(extension: Any, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 64, 64, 3), torch.cat([extension.box_mask(), dot(64, 64, 30, 31)])
    for difference in ("previous step", "same step", "decoded"):
        chosen = {
            "difference": difference,
            "decode_every": 1,
            "min_effect": 200.0,
            "retries": 1,
            "seed": 4,
            "steps": 3,
        }
        first, second = (extension.blend(loaded, bundle, image, mask, **chosen).args for _ in range(2))
        assert torch.equal(first[0], second[0]) and first[3] == second[3]
        assert torch.equal(first[2]["samples"], second[2]["samples"])


@pytest.mark.parametrize("difference", ["previous step", "same step", "decoded"])
def test_a_run_is_stopped_within_one_step(
    extension: Any, loaded: Any, bundle: Any, difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    calls: list[int] = []
    unet = type(loaded.model.model.diffusion_model)
    forward = unet.forward

    def counting(self: Any, *arguments: Any, **values: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            comfy.model_management.interrupt_current_processing()
        return forward(self, *arguments, **values)

    image, mask = torch.rand(1, 64, 64, 3), extension.box_mask()
    plain = extension.blend(loaded, bundle, image, mask).args[0]
    with monkeypatch.context() as patch:
        patch.setattr(unet, "forward", counting)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            extension.blend(loaded, bundle, image, mask, steps=50, difference=difference)
    assert len(calls) <= 5
    # and the model is as before
    assert torch.equal(extension.blend(loaded, bundle, image, mask).args[0], plain)


def test_records_say_what_was_set(extension: Any, loaded: Any, bundle: Any) -> None:
    image, mask = torch.rand(1, 64, 64, 3), extension.box_mask()
    chosen = {"reweighting": "paper", "cap": 3.0, "temperature": 2.0, "raw_difference": True, "start_percent": 0.25}
    settings = extension.blend(loaded, bundle, image, mask, **chosen).args[3][0]["settings"]
    expected = {"reweighting": "paper", "cap": 3.0, "temperature": 2.0, "normalise": False, "start_percent": 0.25}
    expected |= {"difference": "previous step", "scope": "anomaly tokens", "end_percent": 1.0, "feather": 2}
    assert {key: settings[key] for key in expected} == expected
    authors = extension.blend(loaded, bundle, image, mask, reweighting="authors").args[3][0]["settings"]
    assert authors["difference"] == "noisy" and "temperature" not in authors


def test_another_base_model_is_an_error(extension: Any, loaded: Any, bundle: Any) -> None:
    other = replace(bundle, metadata={**bundle.metadata, "base_fingerprint": "2:beef"})
    with pytest.raises(
        extension.errors.InputError, match="positive: the embedding was trained on the model 2:beef, this"
    ):
        extension.blend(loaded, other, torch.rand(1, 64, 64, 3), extension.box_mask())
