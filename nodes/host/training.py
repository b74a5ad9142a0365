"""Trainings inside ComfyUI: its model folders as stores, its free memory, and what a training gives back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
from torch import Tensor

from ...anomalydiffusion_core.conditioning.prompt_encoder import Prompt
from ...anomalydiffusion_core.denoiser import check_width
from ...anomalydiffusion_core.identity import Identity
from ...anomalydiffusion_core.training.plans import Base, Start
from ...anomalydiffusion_core.training.session import Trained, TrainingPlan, run_training
from ...anomalydiffusion_core.training.settings import TrainingChoices
from . import folders
from .conditioning import ComfyConditioning, Conditioning, conditioning_digest, single_context
from .denoiser import ComfyDenoiser
from .lora import with_lora
from .progress import Progress
from .sampler import ComfySampler
from .text_encoder import TextEncoder


def training_denoiser(model: Any, vae: Any, choices: TrainingChoices, clip: Any = None) -> ComfyDenoiser:
    """The denoiser of a training."""
    companions = () if clip is None else (clip.patcher,)
    return ComfyDenoiser(
        model, vae, compute=choices.compute, checkpointing=choices.checkpointing, companions=companions
    )


def training_base(denoiser: ComfyDenoiser) -> Base:
    """What identifies the model of a training: LoRAs that are applied to it count."""
    content = {
        "base": denoiser.patched_fingerprint(),
        "vae": denoiser.vae_fingerprint(),
        "compute": str(denoiser.compute_dtype),
    }
    return Base(denoiser, content, folders.applied_lora(Identity("", denoiser.adaptation())))


def start_from_context(initial: Any) -> Start:
    """Tokens that start near the rows of a conditioning, or as small noise for None."""
    rows = None if initial is None else single_context(initial, "initial")
    return Start(rows, content={"initial": conditioning_digest(initial)})


def start_in_prompt(denoiser: ComfyDenoiser, clip: Any, template: str, placeholder: str, words: str) -> Start:
    """Tokens that are learned inside a prompt and start near the embeddings of some words."""
    encoder = TextEncoder(clip)
    check_width(denoiser, encoder.context_width, "clip")
    prompt = Prompt(encoder, template.strip(), placeholder)
    content = {"clip": encoder.patched_fingerprint(), "template": prompt.template, "words": words}
    return Start(encoder.words(words), prompt, content)


def caption(
    denoiser: ComfyDenoiser, conditioning: Conditioning | None, name: str
) -> tuple[Tensor, ComfyConditioning] | None:
    """Context rows [L, width] of the conditioning of one caption, and itself for sampling; None without one.

    Raises InputError for several captions and for another width than the model's.
    """
    if conditioning is None:
        return None
    context = single_context(conditioning, name)
    check_width(denoiser, context.shape[-1], name)
    return context, ComfyConditioning(conditioning)


def sampler_with(model: Any, vae: Any, weights: Mapping[str, Tensor] | None) -> ComfySampler:
    """A sampler of a MODEL with a LoRA, or without for None."""
    return ComfySampler(ComfyDenoiser(model if weights is None else with_lora(model, weights), vae))


def train(plan: TrainingPlan, folder: str, denoiser: ComfyDenoiser, choices: TrainingChoices | None = None) -> Trained:
    """The core's ``run_training`` with ComfyUI's folders, progress and memory."""
    with _memory_returned():
        return run_training(plan, folders.ModelStore(folder), Progress, _free(denoiser), choices)


def _free(denoiser: ComfyDenoiser) -> Callable[[], int]:
    return lambda: int(comfy.model_management.get_free_memory(denoiser.device))


@contextmanager
def _memory_returned() -> Iterator[None]:
    """Give the memory of a training back to the system and to the host at the end."""
    try:
        yield
    finally:
        gc.collect()
        comfy.model_management.soft_empty_cache()
