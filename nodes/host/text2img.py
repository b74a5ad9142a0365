"""Latent diffusion's text-to-image model (text2img-large), the paper's base model, as ComfyUI's MODEL, VAE and CLIP.

All three are ComfyUI's own objects, so that its memory management, precision and stock nodes work as with any other
model; only the text encoder is a network that the host does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...anomalydiffusion_core.backends.bert_words import END, PADDING, START, as_tokenizer, bert_words
from ...anomalydiffusion_core.backends.ldm_bert import TEXT_ENCODER, BertShape, LdmBert
from ...anomalydiffusion_core.backends.ldm_files import AUTOENCODER_PREFIX, UNET_PREFIX
from ...anomalydiffusion_core.backends.text2img import (
    HEADS,
    LAYOUT,
    TEXT_PREFIX,
    AutoencoderShape,
    OriginalParts,
    read_text2img,
)
from ...anomalydiffusion_core.weights import check_shapes, shapes_of
from .progress import interrupted

CLIP_NAME = "bert"


class _Text2ImgConfig(comfy.supported_models_base.BASE):
    unet_config: dict[str, Any] = {}
    unet_extra_config = {"num_heads": HEADS, "num_head_channels": -1}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 1.0
    vae_key_prefix = [AUTOENCODER_PREFIX]
    text_encoder_key_prefix = [TEXT_PREFIX]


class _HostBert(LdmBert):
    """The text encoder out of ComfyUI's layers, called as ComfyUI calls its own."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(BertShape(**{name: config[name] for name in asdict(BertShape())}), operations, dtype=dtype)
        if device is not None:
            self.to(device)
        self.num_layers = self.shape.depth
        self.dtype = dtype

    def set_input_embeddings(self, embeddings: Any) -> None:
        """As the host exchanges its table of words."""
        self.token_emb = embeddings

    def forward(  # type: ignore[override]
        self, input_tokens: Any, attention_mask: Any = None, embeds: Any = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The context, and that behind an earlier layer where CLIP Set Last Layer asks for it."""
        del attention_mask  # the model was trained without
        x = self.token_emb(input_tokens, out_dtype=torch.float32) if embeds is None else embeds
        layer = options.get("intermediate_output")
        if layer is None:
            return self.embed(x), None
        last = layer + 1 if layer >= 0 else self.num_layers + layer + 1
        return self.embed(x), self.embed(x, last)


def _clip_target(shape: BertShape, folders: Sequence[Path]) -> comfy.supported_models_base.ClipTarget:
    words = bert_words(folders)

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=shape.room,
                textmodel_json_config=asdict(shape),
                model_class=_HostBert,
                special_tokens={"start": START, "end": END, "pad": PADDING},
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                "",
                shape.room,
                pad_with_end=False,
                embedding_directory=embedding_directory,
                embedding_size=shape.width,
                embedding_key=CLIP_NAME,
                tokenizer_class=as_tokenizer(words),
            )

    class Tokenizers(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(embedding_directory, {}, tokenizer=Tokenizer, name=CLIP_NAME)

    class Encoders(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device, dtype, model_options or {}, name=CLIP_NAME, clip_model=Encoder)

    return comfy.supported_models_base.ClipTarget(Tokenizers, Encoders)


def load_text2img(path: Path, embeddings: Sequence[str] = ()) -> tuple[Any, Any, Any]:
    """MODEL, VAE and CLIP of a file. embeddings: folders of textual-inversion files.

    Raises InputError that names what is missing or does not fit.
    """
    path = Path(path)
    parts = read_text2img(path, interrupted)
    model, clip = _load_unet(path, parts), _load_clip(path, parts, embeddings)
    shape = AutoencoderShape.of(parts.autoencoder)
    vae = comfy.sd.VAE(sd=dict(parts.autoencoder), config={"params": shape.original()})
    check_shapes(path, shapes_of(parts.autoencoder), shapes_of(vae.first_stage_model.state_dict()), LAYOUT)
    return model, vae, clip


def _load_unet(path: Path, parts: OriginalParts) -> Any:
    management = comfy.model_management
    state = {UNET_PREFIX + name: value for name, value in parts.unet.items()}
    config = _Text2ImgConfig(comfy.model_detection.detect_unet_config(state, UNET_PREFIX))
    device, offload = management.get_torch_device(), management.unet_offload_device()
    count = comfy.utils.calculate_parameters(state)
    formats = list(config.supported_inference_dtypes)
    stored = comfy.utils.weight_dtype(state)
    dtype = management.unet_dtype(model_params=count, supported_dtypes=formats, weight_dtype=stored)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, formats))
    model = config.get_model({}, "", device=management.unet_inital_load_device(count, dtype))
    check_shapes(path, shapes_of(parts.unet), shapes_of(model.diffusion_model.state_dict()), LAYOUT)
    parts.unet.clear()  # each weight is let go as it is copied
    model.load_model_weights(state, UNET_PREFIX)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _load_clip(path: Path, parts: OriginalParts, embeddings: Sequence[str]) -> Any:
    shape = BertShape.of(parts.text)
    count = comfy.utils.calculate_parameters(parts.text)
    clip = comfy.sd.CLIP(_clip_target(shape, [path.parent]), list(embeddings), parameters=count)
    network = clip.cond_stage_model.bert.transformer
    check_shapes(path, shapes_of(parts.text), shapes_of(network.state_dict()), TEXT_ENCODER)
    clip.cond_stage_model.load_sd(parts.text)
    parts.text.clear()
    return clip
