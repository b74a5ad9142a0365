"""Weight maps against hand-worked numbers, and the attention forms against plain softmax attention."""

from __future__ import annotations

import math

import pytest
import torch

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.sampling.attention_gain import AttentionGain, plain_attention
from anomalydiffusion_core.sampling.reweighting import (
    Reweighter,
    ReweightingSettings,
    authors_radius,
    authors_weights,
    decoded_difference,
    grown,
    latent_difference,
    monotone_weights,
    paper_weights,
)

# Three cells of a 2 x 2 map lie in the mask.
MASK = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
DIFFERENCE = torch.tensor([[[1.0, 0.5], [2.0, 4.0]]])


def test_paper_weights_are_literal_equation_7() -> None:
    # f = 1/d = 1, 2, 1/2 inside and minus infinity outside; |m|_1 = 3.
    total = math.exp(1) + math.exp(2) + math.exp(0.5)
    expected = torch.tensor([[[3 * math.exp(1) / total, 3 * math.exp(2) / total], [3 * math.exp(0.5) / total, 0]]])
    assert torch.allclose(paper_weights(DIFFERENCE, MASK), expected)
    assert paper_weights(DIFFERENCE, MASK)[0, 0].tolist() == pytest.approx([0.69367, 1.88560], abs=1e-4)


def test_paper_weights_of_unchanged_cells_and_of_an_unchanged_sample() -> None:
    difference = torch.tensor([[[0.0, 0.5], [0.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]])
    weights = paper_weights(difference, MASK.expand(2, -1, -1))
    assert weights[0].tolist() == [[0, 3], [0, 0]]  # f(0) is minus infinity, so one cell takes it all
    assert weights[1].tolist() == MASK[0].tolist()


def test_paper_weights_survive_tiny_differences() -> None:
    weights = paper_weights(torch.tensor([[[1e-42, 1e-3], [1.0, 0.0]]]), MASK)
    assert bool(weights.isfinite().all()) and weights.sum() == pytest.approx(3)


def test_authors_weights_by_hand() -> None:
    # 1/d = 1, 2, 1/2, sum 3.5, times 3: 0.857, 1.714, 0.429; clipped to 1 .. 1.5.
    assert authors_weights(DIFFERENCE, MASK).tolist() == [[[1.0, 1.5], [1.0, 1.0]]]
    assert authors_weights(DIFFERENCE, MASK, cap=2.0)[0, 0, 1].item() == pytest.approx(12 / 7)
    assert bool(authors_weights(torch.zeros(1, 2, 2), MASK).isfinite().all())


def test_monotone_weights_by_hand() -> None:
    # The mean of 1, 0.5 and 2 is 7/6, so r = 6/7, 3/7, 12/7 and the gain is 1 / (1 + r) = 7/13, 7/10, 7/19.
    expected = torch.tensor([[[1 + 7 / 13, 1 + 7 / 10], [1 + 7 / 19, 1.0]]])
    assert torch.allclose(monotone_weights(DIFFERENCE, MASK), expected)
    assert monotone_weights(DIFFERENCE, MASK, strength=2, cap=1.9)[0, 0, 1] == pytest.approx(1.9)


def test_monotone_weights_fall_with_the_difference_and_stay_in_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        difference = torch.rand(2, 8, 8, generator=generator) ** 4
        mask = (torch.rand(2, 8, 8, generator=generator) > 0.5).float()
        weights = monotone_weights(difference, mask, strength=3.0, cap=2.5)
        assert bool((weights[mask == 0] == 1).all())
        assert bool((weights >= 1).all()) and bool((weights <= 2.5).all())
        for sample in range(2):
            inside = mask[sample] > 0
            order = difference[sample][inside].argsort()
            assert bool((weights[sample][inside][order].diff() <= 1e-6).all())
    assert monotone_weights(torch.zeros(1, 2, 2), MASK).tolist() == [[[2, 2], [2, 1]]]


def naive_attention(q, k, v, heads, weights, columns, on_logits):  # type: ignore[no-untyped-def]
    """softmax(q k / sqrt(d)) v with every step written out; weights [B, N] on the chosen columns."""
    batch, positions, channels = q.shape
    size = channels // heads
    out = torch.zeros(batch, positions, channels, dtype=torch.float64)
    for b in range(batch):
        factor = torch.where(columns[None, :], weights[b][:, None], torch.ones(())).double()
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = q[b, :, part].double() @ k[b, :, part].double().T / math.sqrt(size)
            attention = (logits * factor).softmax(-1) if on_logits else logits.softmax(-1) * factor
            out[b, :, part] = attention @ v[b, :, part].double()
    return out


def layer_inputs(context: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(2, n, 24, generator=generator) for n in (12, context, context))  # type: ignore[return-value]


@pytest.mark.parametrize("on_logits", [False, True])
def test_attention_forms_equal_the_written_out_softmax(on_logits: bool) -> None:
    q, k, v = layer_inputs()
    weights = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3)) * 3
    columns = torch.tensor([True, False, True, True, False, False, True])
    got = AttentionGain(weights, columns, on_logits).attend(q, k, v, 3, 3, 4)
    expected = naive_attention(q, k, v, 3, weights.flatten(1), columns, on_logits)
    assert torch.allclose(got.double(), expected, atol=1e-5)


def test_weight_one_is_plain_attention_bit_for_bit() -> None:
    q, k, v = layer_inputs()
    gain = AttentionGain(torch.ones(2, 3, 4), torch.ones(7, dtype=torch.bool))
    assert torch.equal(gain.attend(q, k, v, 3, 3, 4), plain_attention(q, k, v, 3))


def test_with_all_columns_the_anomaly_re_weighting_only_scales() -> None:
    """As the help says: there is nothing else that attention could be taken from."""
    q, k, v = layer_inputs()
    weights = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3)) + 1
    got = AttentionGain(weights, torch.ones(7, dtype=torch.bool)).attend(q, k, v, 3, 3, 4)
    assert torch.allclose(got, plain_attention(q, k, v, 3) * weights.flatten(1)[..., None], atol=1e-5)


def test_anomaly_tokens_never_lose_attention_mass() -> None:
    q, k, _ = layer_inputs()
    columns = torch.tensor([True, True, False, False, False, False, False])
    # With values that are 1 on the chosen columns and 0 elsewhere the output is the attention mass itself.
    v = columns.float()[None, :, None].expand(2, -1, 24).contiguous()
    difference = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))
    weights = monotone_weights(difference, torch.ones(2, 3, 4))
    before = plain_attention(q, k, v, 3)
    after = AttentionGain(weights, columns).attend(q, k, v, 3, 3, 4)
    assert bool((after >= before).all()) and bool((after > before).any())


def test_weights_are_averaged_over_a_coarser_layer() -> None:
    weights = torch.ones(1, 4, 4)
    weights[0, :2, :2] = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    gain = AttentionGain(weights, torch.ones(3, dtype=torch.bool))
    assert gain.at(2, 2).tolist() == [[1.25, 1, 1, 1]]
    assert gain.at(4, 4).tolist() == weights.flatten(1).tolist()


def test_a_context_repeated_by_the_host_is_understood() -> None:
    q, k, v = layer_inputs(4)
    gain = AttentionGain(torch.full((2, 3, 4), 1.7), torch.tensor([True, False, True, False]))
    once = gain.attend(q, k, v, 3, 3, 4)
    twice = gain.attend(q, k.repeat(1, 2, 1), v.repeat(1, 2, 1), 3, 3, 4)
    assert torch.allclose(once, twice, atol=1e-6)


def test_weights_of_another_call_are_refused() -> None:
    q, k, v = layer_inputs()
    with pytest.raises(InputError, match="7"):
        AttentionGain(torch.ones(2, 3, 4), torch.ones(5, dtype=torch.bool)).attend(q, k, v, 3, 3, 4)
    with pytest.raises(InputError, match="made for 1 samples"):
        AttentionGain(torch.ones(1, 3, 4), torch.ones(7, dtype=torch.bool)).attend(q, k, v, 3, 3, 4)


def test_a_run_starts_without_weights_and_keeps_to_its_range() -> None:
    y0 = torch.zeros(1, 4, 2, 2)
    columns = torch.ones(3, dtype=torch.bool)
    settings = ReweightingSettings(start_percent=0.2, end_percent=0.6)
    reweighter = Reweighter(settings, y0, MASK[:, None], columns)
    assert reweighter.gain(0.3) is None
    denoised = DIFFERENCE.sqrt()[:, None].expand(-1, 4, -1, -1)
    assert torch.allclose(latent_difference(denoised, y0), DIFFERENCE)
    reweighter.observe(denoised)
    gain = reweighter.gain(0.3)
    assert gain is not None and torch.allclose(gain.weights, monotone_weights(DIFFERENCE, MASK))
    assert reweighter.gain(0.1) is None and reweighter.gain(0.7) is None


def test_modes_inside_a_run() -> None:
    y0, columns = torch.zeros(1, 4, 2, 2), torch.ones(3, dtype=torch.bool)
    literal = ReweightingSettings(reweighting="paper", raw_difference=True, cap=1_000_000)
    for settings, inside, on_logits in (
        (literal, paper_weights(DIFFERENCE, MASK), False),
        (ReweightingSettings(reweighting="authors"), authors_weights(DIFFERENCE, MASK), True),
    ):
        reweighter = Reweighter(settings, y0, MASK[:, None], columns)
        reweighter.observe_difference(DIFFERENCE)
        gain = reweighter.gain(0.5)
        assert gain is not None and gain.on_logits is on_logits
        assert torch.allclose(gain.weights[MASK > 0], inside[MASK > 0])
        assert gain.weights[0, 1, 1] == 1


def test_strength_zero_installs_nothing_and_bad_settings_are_named() -> None:
    assert ReweightingSettings().active
    assert not ReweightingSettings(strength=0).active and not ReweightingSettings(reweighting="off").active
    for wrong, word in (
        ({"reweighting": "other"}, "reweighting"),
        ({"strength": -1.0}, "strength"),
        ({"cap": 0.5}, "cap"),
        ({"temperature": 0.0}, "temperature"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "start_percent, end_percent"),
        ({"difference": "none"}, "difference"),
        ({"token_scope": "few"}, "token_scope"),
        ({"decode_every": 0}, "decode_every"),
    ):
        with pytest.raises(InputError, match=word):
            ReweightingSettings(**wrong)  # type: ignore[arg-type]


def test_the_authors_mask_grows_by_their_schedule() -> None:
    # Radii that were read off the published code's 200 steps (1, 6, ..., 996).
    for times, radius in (((901, 996), 8), ((776, 896), 7), ((651, 771), 6), ((151, 271), 2), ((26, 146), 1)):
        assert {authors_radius(time, 200) for time in times} == {radius}
    assert {authors_radius(time, 200) for time in (1, 21)} == {0}
    # With exactly 50 steps the factor is twice as large: floor(600 * 16 / 1000) and floor(600 * 8 / 1000).
    assert (authors_radius(500, 50), authors_radius(500, 51)) == (9, 4)


def test_grown_masks_by_hand() -> None:
    mask = torch.zeros(1, 1, 5, 6)
    mask[0, 0, 0, 4] = 1
    assert grown(mask, 0) is mask
    expected = torch.zeros(5, 6)
    expected[:2, 3:] = 1
    assert torch.equal(grown(mask, 1)[0, 0], expected)


def test_authors_compare_the_noisy_latent_inside_the_grown_mask() -> None:
    y0 = torch.full((1, 4, 5, 5), 0.5)
    mask = torch.zeros(1, 1, 5, 5)
    mask[0, 0, 2, 2] = 1
    reweighter = Reweighter(
        ReweightingSettings(reweighting="authors"), y0, mask, torch.tensor([False, True, False]), 200
    )
    # The clean estimate is not what this mode looks at.
    reweighter.observe(torch.rand(1, 4, 5, 5))
    assert reweighter.gain(0.0) is None
    noisy = y0 + 1
    noisy[:, :, 2, 2] = y0[:, :, 2, 2] + 0.5
    # At t = 100 the radius is 1: nine cells, 1/d is 1 in eight of them and 4 in the middle, the sum 12. So w is
    # 9 / 12 around the middle, clipped to 1, and 36 / 12 in it, clipped to 1.5.
    reweighter.see_noisy(noisy, 100)
    gain = reweighter.gain(0.0)
    assert gain is not None and gain.on_logits
    expected = torch.ones(5, 5)
    expected[2, 2] = 1.5
    assert torch.allclose(gain.weights[0], expected)
    assert float(reweighter.region(100).sum()) == 9 and float(reweighter.region(0).sum()) == 1
    # The published code leaves the first column weighted too.
    assert gain.columns.tolist() == [True, True, False]


def test_scope_of_all_tokens_and_of_the_anomaly() -> None:
    columns = torch.tensor([False, True, False])
    assert ReweightingSettings().chosen_columns(columns).tolist() == [False, True, False]
    assert ReweightingSettings(token_scope="all tokens").chosen_columns(columns).all()


def test_decoded_differences_by_hand() -> None:
    normals, images = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    images[0, :, 0, 0] = torch.tensor([0.3, 0.6, 0.9])
    # One pixel of four: (0.09 + 0.36 + 0.81) / 3 / 4.
    expected = torch.tensor([[[0.105, 0.0], [0.0, 0.0]]])
    assert torch.allclose(decoded_difference(images, normals, 2), expected)


def test_literal_equation_7_scales_attention_mass_as_worked_by_hand() -> None:
    """`paper` at temperature 1 on the raw difference: each position's attention on e is |m|_1 softmax(1 / d) of it."""
    settings = ReweightingSettings(reweighting="paper", raw_difference=True, cap=1_000_000)
    columns = torch.tensor([True, False, True, False, False, False, False])
    reweighter = Reweighter(settings, torch.zeros(1, 4, 2, 2), MASK[:, None], columns)
    reweighter.observe(DIFFERENCE.sqrt()[:, None].expand(-1, 4, -1, -1))
    gain = reweighter.gain(0.5)
    assert gain is not None
    generator = torch.Generator().manual_seed(4)
    q, k = (torch.randn(1, n, 24, generator=generator) for n in (4, 7))
    # Values that are 1 on the columns of e make the output the attention mass on e.
    v = columns.float()[None, :, None].expand(1, -1, 24).contiguous()
    before, after = (out[0, :, 0] for out in (plain_attention(q, k, v, 3), gain.attend(q, k, v, 3, 2, 2)))
    # d = 1, 0.5, 2 in the mask: exp(1) + exp(2) + exp(0.5) = 11.75606, times 3 in the numerator; 1 outside the mask.
    by_hand = torch.tensor([3 * 2.718282 / 11.75606, 3 * 7.389056 / 11.75606, 3 * 1.648721 / 11.75606, 1.0])
    assert torch.allclose(after, before * by_hand, rtol=1e-4)


def test_positions_outside_of_the_mask_keep_the_very_result_of_the_layer() -> None:
    q, k, v = layer_inputs()
    weights = torch.ones(2, 3, 4)
    weights[1, 1, 2] = 1.9
    calls: list[tuple[int, ...]] = []

    def counting(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        calls.append(tuple(q.shape))
        return plain_attention(q, k, v, heads)

    for on_logits in (False, True):
        gain = AttentionGain(weights, torch.ones(7, dtype=torch.bool), on_logits)
        calls.clear()
        out, plain = gain.attend(q, k, v, 3, 3, 4, counting), plain_attention(q, k, v, 3)
        differs = (out != plain).any(dim=-1)
        assert differs.nonzero().tolist() == [[1, 6]]
        # Only the row and the position that is weighted are computed once more.
        assert calls == [(2, 12, 24), (1, 1, 24)]


def test_attention_forms_agree_with_the_written_out_softmax_at_random_sizes() -> None:
    generator = torch.Generator().manual_seed(11)
    for case in range(20):
        height, width, length, batch = (int(torch.randint(1, 7, (), generator=generator)) for _ in range(4))
        q = torch.randn(batch, height * width, 16, generator=generator)
        k, v = (torch.randn(batch, length, 16, generator=generator) for _ in range(2))
        weights = 1 + torch.rand(batch, height, width, generator=generator) * (
            torch.rand(batch, height, width, generator=generator) > 0.6
        )
        columns = torch.rand(batch, length, generator=generator) > 0.5
        on_logits = case % 2 == 1
        got = AttentionGain(weights, columns, on_logits).attend(q, k, v, 2, height, width)
        for row in range(batch):
            one = slice(row, row + 1)
            expected = naive_attention(q[one], k[one], v[one], 2, weights[one].flatten(1), columns[row], on_logits)
            assert torch.allclose(got[one].double(), expected, atol=1e-5)


def test_prompt_to_prompt_puts_the_mask_in_place_of_the_attention_map() -> None:
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(2, 6, 8, generator=generator)
    k, v = (torch.randn(2, 4, 8, generator=generator) for _ in range(2))
    mask = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]).expand(2, -1, -1)
    columns = torch.tensor([[False, True, True, False], [False] * 4])
    got = AttentionGain(mask, columns, replaces=True).attend(q, k, v, 1, 2, 3)
    maps = (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(dim=-1)
    expected = maps.clone()
    expected[0, :, 1:3] = mask[0].flatten()[:, None] / 2  # all of the mask, in equal parts for both tokens
    torch.testing.assert_close(got, expected @ v, rtol=0, atol=1e-5)
    torch.testing.assert_close(got[1], plain_attention(q, k, v, 1)[1], rtol=0, atol=0)


def test_prompt_to_prompt_needs_no_estimate_and_keeps_to_its_range() -> None:
    cells, columns = torch.zeros(1, 1, 4, 4), torch.ones(3, dtype=torch.bool)
    cells[..., 1:3, 1:3] = 1
    settings = ReweightingSettings(reweighting="prompt-to-prompt", end_percent=0.5)
    reweighter = Reweighter(settings, torch.zeros(1, 4, 4, 4), cells, columns)
    reweighter.observe(torch.ones(1, 4, 4, 4))
    gain = reweighter.gain(0.0)
    assert gain is not None and torch.equal(gain.weights, cells[:, 0])
    assert reweighter.gain(0.6) is None
