"""Spatial Anomaly Embedding with a CLIP: the tokens inside a prompt, on a slim Stable Diffusion 1.5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def encoder(extension: Any, diffusion: Any) -> Any:
    return extension.module("nodes.host.text_encoder").TextEncoder(diffusion.clip)


def words(diffusion: Any, text: str) -> torch.Tensor:
    """The text encoder's own embeddings of the words of a text."""
    ids = [token for token, _ in diffusion.clip.tokenize(text)["l"][0][1:]]
    ids = ids[: ids.index(49407)]
    table = diffusion.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    return table[torch.tensor(ids)].float()


def embed(extension: Any, bundle: Any, mask: torch.Tensor, **values: Any) -> Any:
    return extension.run("SpatialAnomalyEmbedding", bundle=bundle, defect_type="", mask=mask, **values).args[0]


@pytest.mark.parametrize(
    "text", ["a photo of a {}", "an (old:1.3) [{}] part, (((worn)))", "({}:1.4) on \\(x\\)", "{}"]
)
def test_tokens_that_are_words_give_what_the_host_makes_of_the_words(
    stock: Any, diffusion: Any, encoder: Any, text: str
) -> None:
    expected = stock("CLIPTextEncode", diffusion.clip, text.format(" cat dog "))[0]
    with torch.inference_mode():
        template = encoder.parse(text.format("*"), "*")
        entries = encoder.conditioning([template.fill(words(diffusion, "cat dog"))])
    assert torch.equal(entries[0][0], expected[0][0])
    assert torch.equal(entries[0][1]["pooled_output"], expected[0][1]["pooled_output"])
    columns = template.columns(2)
    ids = [token for token, _ in diffusion.clip.tokenize(text.format(" cat dog "))["l"][0]]
    assert columns.nonzero().flatten().tolist() == [ids.index(2368), ids.index(1929)]


def test_one_row_for_each_mask_whatever_its_batch_mates(extension: Any, diffusion: Any, clip_bundle: Any) -> None:
    masks = extension.box_mask(3)
    together = embed(extension, clip_bundle, masks, clip=diffusion.clip)
    assert len(together) == 1 and together[0][0].shape == (3, 77, 768)
    # "a photo of a *": start, a, photo, of, a, then 2 + 2 tokens.
    assert together[0][1][extension.conditioning.COLUMNS].nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert together[0][1]["pooled_output"].shape == (3, 768)
    for place in range(3):
        alone = embed(extension, clip_bundle, masks[place : place + 1], clip=diffusion.clip)
        assert torch.equal(alone[0][0][0], together[0][0][place])
    assert not torch.equal(together[0][0][0], together[0][0][1])


def test_own_template_and_a_skipped_layer_are_used(
    extension: Any, stock: Any, diffusion: Any, clip_bundle: Any
) -> None:
    mask = extension.box_mask()
    plain = embed(extension, clip_bundle, mask, clip=diffusion.clip)
    other = embed(extension, clip_bundle, mask, clip=diffusion.clip, template="a * on metal")
    assert other[0][1][extension.conditioning.COLUMNS].nonzero().flatten().tolist() == [2, 3, 4, 5]
    skipped = stock("CLIPSetLastLayer", diffusion.clip, -2)[0]
    assert not torch.equal(embed(extension, clip_bundle, mask, clip=skipped)[0][0], plain[0][0])
    assert torch.equal(embed(extension, clip_bundle, mask, clip=diffusion.clip)[0][0], plain[0][0])


def test_a_bundle_is_used_as_it_was_trained(extension: Any, diffusion: Any, clip_bundle: Any, bundle: Any) -> None:
    mask, errors = extension.box_mask(), extension.errors
    with pytest.raises(errors.BundleError, match="trained with the token route 'clip' and cannot be used with 'cont"):
        embed(extension, clip_bundle, mask)
    with pytest.raises(errors.BundleError, match="trained with the token route 'context' and cannot be used with 'cl"):
        extension.run("SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/dot", mask=mask, clip=diffusion.clip)
    narrow = replace(bundle, metadata={"token_route": "clip"})
    with pytest.raises(errors.BundleError, match="tokens have the width 128, the text encoder has 768"):
        extension.run("SpatialAnomalyEmbedding", bundle=narrow, defect_type="part/dot", mask=mask, clip=diffusion.clip)
    other = replace(clip_bundle, metadata={**clip_bundle.metadata, "text_encoder_fingerprint": "2:0123"})
    with pytest.raises(errors.InputError, match="trained with the text encoder 2:0123, this one is 2:[0-9a-f]{16}"):
        embed(extension, other, mask, clip=diffusion.clip)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo", "holds the placeholder '\\*' 0 times"),
        ("a * of a *", "holds the placeholder '\\*' 2 times"),
        ("*" + " word" * 72, "takes 78 tokens.*77"),
        ("*" + " word" * 90, "takes 2 windows of 77 tokens"),
    ],
)
def test_templates_that_cannot_be_used(
    extension: Any, diffusion: Any, clip_bundle: Any, template: str, message: str
) -> None:
    with pytest.raises(extension.errors.InputError, match=message):
        embed(extension, clip_bundle, extension.box_mask(), clip=diffusion.clip, template=template)


def test_a_template_without_a_clip_and_several_text_encoders(extension: Any, diffusion: Any, bundle: Any) -> None:
    with pytest.raises(extension.errors.InputError, match="template: requires a CLIP"):
        extension.run(
            "SpatialAnomalyEmbedding", bundle=bundle, defect_type="part/dot", mask=extension.box_mask(), template="a *"
        )

    class Two:
        def tokenize(self, text: str) -> dict[str, Any]:
            window = diffusion.clip.tokenize(text)["l"]
            return {"l": window, "g": window}

    with pytest.raises(extension.errors.InputError, match=r"2 text encoders \(g, l\)"):
        extension.module("nodes.host.text_encoder").TextEncoder(Two())


def test_gradients_reach_the_tokens_and_the_clip_is_as_before(diffusion: Any, encoder: Any) -> None:
    module = diffusion.clip.cond_stage_model
    before = {name: (id(p), p.requires_grad) for name, p in module.named_parameters()}
    template = encoder.parse("a (photo:1.2) of a *", "*")
    generator = torch.Generator().manual_seed(2)
    rows, towards, weights = (torch.randn(*size, generator=generator) for size in ((2, 768), (2, 768), (77, 768)))
    rows, towards = rows * 0.02, towards * 0.02

    def loss(values: torch.Tensor) -> torch.Tensor:
        return (encoder.contexts(template, values[None])[0] * weights).sum()

    with torch.inference_mode():
        with encoder.training_mode():
            own = rows.clone().requires_grad_()
            loss(own).backward()
        assert own.grad is not None
        step = 0.05
        measured = (loss(rows + step * towards) - loss(rows - step * towards)) / (2 * step)
        window = template.fill(rows)
        torch.testing.assert_close(
            encoder.contexts(template, rows[None]), encoder.conditioning([window])[0][0], rtol=0, atol=1e-4
        )
    along = float((own.grad * towards).sum())
    assert abs(along) > 1 and float(measured) == pytest.approx(along, rel=0.05)
    assert {name: (id(p), p.requires_grad) for name, p in module.named_parameters()} == before
