"""The text encoder of text2img-large against diffusers' own, and the ids of its vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

from anomalydiffusion_core.backends.bert_words import BertWords, bert_words, read_vocabulary
from anomalydiffusion_core.backends.ldm_bert import BertShape, LdmBert, load_bert, original_bert_weights
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.identity import text_encoder_fingerprint

pytestmark = pytest.mark.core


def test_numbers_are_those_of_diffusers_ldmbert() -> None:
    torch.manual_seed(0)
    config = LDMBertConfig(
        vocab_size=50, max_position_embeddings=9, encoder_layers=3, encoder_ffn_dim=96, encoder_attention_heads=2,
        head_dim=64, d_model=32, use_cache=False,
    )  # fmt: skip
    theirs = LDMBertModel(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = load_bert(Path("bert"), original_bert_weights(theirs.state_dict()))
    assert ours.shape == BertShape(32, 3, 2, 50, 9, 96)
    ids = torch.randint(0, 50, (4, 9))
    with torch.no_grad():
        expected = theirs(ids)[0]
        torch.testing.assert_close(ours(ids).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    changed = load_bert(Path("bert"), {**original_bert_weights(theirs.state_dict()), "norm.weight": -torch.ones(32)})
    assert text_encoder_fingerprint(ours.state_dict()) != text_encoder_fingerprint(changed.state_dict())


def test_full_size_has_the_weights_of_the_paper() -> None:
    with torch.device("meta"):
        network = LdmBert()
    logits = 30522 * 1280 + 30522
    count = sum(value.numel() for value in network.state_dict().values())
    assert round((count + logits) / 1e6, 1) == 582.0 and round(logits / 1e6, 1) == 39.1


def test_words_known_without_a_vocabulary() -> None:
    words = BertWords()
    assert words("A photo of a *")["input_ids"] == [101, 1037, 6302, 1997, 1037, 1008, 102]
    assert words("")["input_ids"] == [101, 102]
    assert words("a close-up, black anomaly")["input_ids"] == [101, 1037, 2485, 1011, 2039, 1010, 2304, 28685, 102]
    with pytest.raises(InputError, match="'zebra' needs BERT's vocabulary"):
        words("a zebra")


def test_a_vocabulary_beside_the_model_is_used_and_checked(tmp_path: Path) -> None:
    known = {number: word for word, number in BertWords().get_vocab().items()}
    lines = [known.get(number, f"[unused{number}]") for number in range(30522)]
    lines[5000], lines[5001] = "ze", "##bra"
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert bert_words([tmp_path])("a Zebra")["input_ids"] == [101, 1037, 5000, 5001, 102]
    assert bert_words([tmp_path])("a giraffe")["input_ids"] == [101, 1037, 100, 102]
    (tmp_path / "vocab.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    with pytest.raises(InputError, match="line 0, expected is|bert-base-uncased"):
        read_vocabulary(tmp_path / "vocab.txt")
