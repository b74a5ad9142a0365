"""ComfyUI's CLIP: the core's TextEncoder over it, and the conditioning of a defect inside a prompt.

ComfyUI's tokens are ids or embeddings, each with a weight; what a template does with emphasis stays the host's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...anomalydiffusion_core.bundles.bundle import CLIP_ROUTE, CONTEXT_ROUTE, AnomalyBundle
from ...anomalydiffusion_core.bundles.conditioning import check_text_encoder, token_count, tokens_for
from ...anomalydiffusion_core.conditioning.context import ContextConditioning, mask_digests
from ...anomalydiffusion_core.conditioning.prompt_encoder import Prompt
from ...anomalydiffusion_core.conditioning.template import Template, WeightedToken, parse_template, spaced
from ...anomalydiffusion_core.errors import InputError
from ...anomalydiffusion_core.identity import VALUES, adaptation_fingerprint, text_encoder_fingerprint
from .compute import differentiable_weights
from .conditioning import Conditioning, anomaly_extra
from .lora import additions


class TextEncoder:
    """The one text encoder of a CLIP of Stable Diffusion 1 or 2. The CLIP is not changed.

    Raises InputError for a CLIP of several text encoders or of one without a fixed window.
    """

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        empty = clip.tokenize("")
        if len(empty) != 1:
            raise InputError(
                f"clip: it has {len(empty)} text encoders ({', '.join(sorted(empty))}), 1 is supported. Use the CLIP "
                "of a Stable Diffusion 1.5 model."
            )
        self._name, windows = next(iter(empty.items()))
        module = clip.cond_stage_model
        self._encoder: Any = getattr(module, getattr(module, "clip", ""), None)
        if len(windows[0]) < 3 or self._encoder is None:
            raise InputError(
                f"clip: the text encoder '{self._name}' has no fixed window of tokens. Use the CLIP of a Stable "
                "Diffusion 1.5 model."
            )
        self.room = len(windows[0])
        """Tokens of a window, start and end counted."""
        self._end = int(windows[0][1][0])

    @property
    def width(self) -> int:
        """Width of a token embedding (768 for Stable Diffusion 1.5)."""
        return int(self._encoder.transformer.get_input_embeddings().weight.shape[-1])

    @property
    def context_width(self) -> int:
        """Width of the context that it makes, in these text encoders that of a token."""
        return self.width

    def fingerprint(self, like: str = "") -> str:
        """The same text as other backends give for the same weights; those patched by a LoRA count unpatched."""
        backup = self.clip.patcher.backup
        weights = self.clip.cond_stage_model.state_dict()
        own = weights | {key: backup[key].weight for key in weights if key in backup}
        return text_encoder_fingerprint(own, like)

    def adaptation(self) -> str:
        """What LoRAs add to it."""
        return adaptation_fingerprint(additions(self.clip.patcher))

    def patched_fingerprint(self) -> str:
        """Of the values that compute, and of the layer that is read, for content keys."""
        self.clip.load_model()
        return f"{text_encoder_fingerprint(self.clip.cond_stage_model.state_dict(), VALUES)}:{self.clip.layer_idx}"

    def parse(self, template: str, placeholder: str) -> Template:
        """A prompt with emphasis as usual, and the placeholder once. Raises InputError that says what is wrong."""
        windows = self.clip.tokenize(spaced(template, placeholder))[self._name]
        own = self.clip.tokenize(placeholder, disable_weights=True)[self._name][0]
        ids = [int(token) for token, _ in own[1:]]
        return parse_template(template, windows, ids[: ids.index(self._end)], self._end)

    def conditioning(self, windows: Sequence[list[WeightedToken]]) -> Conditioning:
        """CONDITIONING with one row for each window of tokens. Each row is encoded alone."""
        encoded = [self.clip.encode_from_tokens_scheduled({self._name: [window]}) for window in windows]
        entries: Conditioning = []
        for same in zip(*encoded, strict=True):
            extra = dict(same[0][1])
            for key, value in extra.items():
                if isinstance(value, Tensor):
                    extra[key] = torch.cat([row[1][key] for row in same])
            entries.append([torch.cat([row[0] for row in same]).float(), extra])
        return entries

    def _rows(self, tokens: Sequence[Any]) -> Tensor:
        window = [(token, 1.0) for token in tokens]
        rows: Tensor = self.clip.cond_stage_model.encode_token_weights({self._name: [window]})[0]
        return rows[0].float()

    def contexts(self, template: Template, rows: Tensor) -> Tensor:
        """As of the core's TextEncoder, all in one pass."""
        windows = [template.fill(own) for own in rows]
        plain = [[(token, 1.0) for token, _ in window] for window in windows]
        # The host takes several windows for one long prompt and lays their rows end to end.
        made: Tensor = self.clip.cond_stage_model.encode_token_weights({self._name: plain})[0][0].float()
        made = made.view(len(windows), -1, made.shape[-1])
        weights = torch.tensor([[[weight] for _, weight in window] for window in windows], device=made.device)
        if bool((weights == 1).all()):
            return made
        # What the host does with emphasis; it does so in place, which autograd refuses.
        with torch.no_grad():
            empty = self._rows([token for token, _ in self.clip.tokenize("")[self._name][0]])
        return torch.where(weights == 1, made, (made - empty) * weights + empty)

    def words(self, text: str) -> Tensor:
        """The encoder's own embeddings [n, width] of the words of a text. Raises InputError for an empty one."""
        ids = [int(token) for token, _ in self.clip.tokenize(text, disable_weights=True)[self._name][0][1:]]
        ids = ids[: ids.index(self._end)]
        if not ids:
            raise InputError("initial words: they are empty. Give at least one, such as anomaly.")
        table = self._encoder.transformer.get_input_embeddings().weight
        with torch.inference_mode(False):
            return table[torch.tensor(ids, device=table.device)].detach().clone().float().cpu()

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """Gradients flow through the frozen weights to the embeddings; all is as before afterwards."""
        module = self.clip.cond_stage_model
        # Loading it again might push out the denoiser, which is set up for training by then.
        loaded = [one.model for one in comfy.model_management.current_loaded_models]
        if not any(patcher is self.clip.patcher for patcher in loaded):
            with torch.inference_mode():
                self.clip.load_model()
        module.reset_clip_options()
        if self.clip.layer_idx is not None:
            module.set_clip_options({"layer": self.clip.layer_idx})
        norms = [part for part in module.modules() if isinstance(part, torch.nn.LayerNorm)]
        hooks = [norm.register_forward_pre_hook(_copy_input) for norm in norms]
        try:
            with torch.inference_mode(False), torch.enable_grad(), differentiable_weights(module):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _copy_input(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The host's layers add to their input in place, which a normalisation still needs for the backward pass."""
    return tuple(value.clone() for value in inputs)


def mask_prompt(bundle: AnomalyBundle, clip: Any) -> Prompt | None:
    """The prompt of a mask embedding in a CLIP, None without one.

    Raises BundleError unless it was trained that way.
    """
    prompt = None if clip is None else Prompt(TextEncoder(clip), bundle.template, bundle.placeholder)
    bundle.require("mask", route=CONTEXT_ROUTE if prompt is None else CLIP_ROUTE)
    return prompt


def clip_conditioning(bundle: AnomalyBundle, key: str, masks: Tensor, clip: Any, template: str) -> Conditioning:
    """The conditioning of a type inside a prompt, "" for that of the bundle; one row for each mask [B, 1, H, W].

    Raises BundleError for a bundle of another kind, route or width, InputError for another text encoder.
    """
    encoder = TextEncoder(clip)
    bundle.require("anomaly", encoder.width, CLIP_ROUTE)
    check_text_encoder(bundle, encoder)
    parsed = encoder.parse(template or bundle.template, bundle.placeholder)
    columns = parsed.columns(token_count(bundle, key))

    def encode(masks: Tensor) -> Conditioning:
        return encoder.conditioning([parsed.fill(rows) for rows in tokens_for(bundle, key, masks)])

    conditioning = encode(masks)
    # A CLIP with a schedule gives several entries, each for a part of the sampling.
    for number, (context, extra) in enumerate(conditioning):
        remake = partial(lambda number, masks: encode(masks)[number][0], number)
        view, learned = bundle.trained_view(key), bundle.learned_from
        own = ContextConditioning(
            context, columns, remake, bundle.resolution, bundle.base, view, learned, mask_digests(masks)
        )
        extra.update(anomaly_extra(own))
    return conditioning
