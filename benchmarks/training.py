"""Time of a training step beside a bare forward and backward pass of the frozen U-Net at the same batch.

The bare pass computes the noise for fixed latents and the gradient of its mean square to the context alone: what no
training through this U-Net can do without. Slim Stable Diffusion 1.5 of random weights, spatial encoder `light`,
tokens straight to cross-attention, batch 4, 32 x 32 latents: `python benchmarks/training.py`. With `--full` a
Stable Diffusion 1.5 of full size with `resnet50_fpn` and the tokens inside a prompt, batch 1.

Both alternate within each round. Prints the shares of a step (U-Net, text encoder, spatial encoder, the rest) and as
the last line a JSON object: `step_over_unet` (median of the rounds' ratios) and `share_unet`.
"""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from common import against, finish, module, paired_times, show, slim_host, table, timed

SIDE, TYPES, PAIRS = 256, 2, 4


class Clock:
    """Seconds spent in parts of a step, forward and backward."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def make_trainer(full: bool, base: Path) -> Any:
    """A training as the node sets it up, on random images."""
    stock, model, clip, vae = slim_host(base)
    if full:
        importlib.import_module("random_checkpoint").write_full(base / "models" / "checkpoints" / "full.safetensors")
        model, clip, vae = stock("CheckpointLoaderSimple", "full.safetensors")
    models, text, prompts, inversion = map(module, MODULES)
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for number in range(TYPES):
        masks = torch.zeros(PAIRS, 1, SIDE, SIDE)
        masks[:, :, 60 + 20 * number : 140, 80:200] = 1
        pairs[f"part/{number}"] = (torch.rand(PAIRS, 3, SIDE, SIDE, generator=generator), masks)
    denoiser = models.ComfyDenoiser(model, vae, companions=(clip.patcher,) if full else ())
    settings = inversion.InversionSettings(
        steps=1_000_000,
        batch_size=1 if full else 4,
        resolution=SIDE,
        augmented_copies=0,
        encoder="resnet50_fpn" if full else "light",
    )
    prompt = prompts.Prompt(text.TextEncoder(clip)) if full else None
    return inversion.AnomalyTrainer(denoiser, pairs, settings, prompt=prompt)


MODULES = (
    "nodes.host.denoiser",
    "nodes.host.text_encoder",
    "anomalydiffusion_core.conditioning.prompt_encoder",
    "anomalydiffusion_core.training.inversion",
)


def bare_pass(loop: Any) -> Callable[[], float]:
    """Seconds of one forward and backward pass of the U-Net with the context of a step."""
    unet, batch = loop.denoiser.model.model.diffusion_model, loop._draw()
    latents = loop.bank.latents[batch.rows]
    with torch.no_grad():
        context = loop.module(batch.types, loop.bank.masks[batch.rows].float())
    options = loop.denoiser._options(None)

    def run() -> None:
        own = context.detach().clone().requires_grad_()
        unet(latents, batch.t.float(), context=own, transformer_options=dict(options)).square().mean().backward()

    return timed(run)


def one_step(loop: Any) -> Callable[[], float]:
    """Seconds of one step."""
    return timed(lambda: loop.losses.append(loop._one_step()))


@contextmanager
def measured(loop: Any, clock: Clock) -> Iterator[None]:
    """Count the forward passes of a step by part, and the backward pass of each part by hooks at its borders."""
    taught, denoiser = loop.module, loop.denoiser
    encode, predict = taught.encoder.forward, denoiser.predict_noise
    prompt = taught.prompt
    marks: list[tuple[str, float]] = []

    def mark(name: str, value: torch.Tensor) -> torch.Tensor:
        """Note the time at which the gradient of `value` is known."""
        if value.requires_grad:
            value.register_hook(lambda _: marks.append((name, time.perf_counter())))
        return value

    def timed_encoder(masks: torch.Tensor) -> torch.Tensor:
        with clock.part("spatial encoder"):
            return mark("encoder out", encode(masks))

    def timed_predict(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        mark("context", context)
        with clock.part("U-Net"):
            return mark("U-Net out", predict(x, t, context))

    step = loop.optimizer.step

    def timed_optimizer() -> None:
        marks.append(("end", time.perf_counter()))
        step()

    taught.encoder.forward, denoiser.predict_noise, loop.optimizer.step = (
        timed_encoder,
        timed_predict,
        timed_optimizer,
    )
    if prompt is not None:
        contexts = prompt.contexts

        def timed_contexts(rows: torch.Tensor) -> torch.Tensor:
            with clock.part("text encoder"):
                return contexts(rows)

        prompt.contexts = timed_contexts
    try:
        yield
    finally:
        del taught.encoder.forward, denoiser.predict_noise, loop.optimizer.step
        if prompt is not None:
            del prompt.contexts
        at = dict(marks)
        clock.seconds["U-Net"] += at["context"] - at["U-Net out"]
        if prompt is not None:
            clock.seconds["text encoder"] += at["encoder out"] - at["context"]
        clock.seconds["spatial encoder"] += at["end"] - at["encoder out"]


def shares(loop: Any, rounds: int) -> dict[str, float]:
    """Medians over some steps of each part's share of the step."""
    found: dict[str, list[float]] = {}
    step = one_step(loop)
    for _ in range(rounds):
        clock = Clock()
        with measured(loop, clock):
            whole = step()
        for name, seconds in clock.seconds.items():
            found.setdefault(name, []).append(seconds / whole)
        found.setdefault("rest", []).append(1 - sum(clock.seconds.values()) / whole)
    return {name: statistics.median(values) for name, values in found.items()}


def main(full: bool = False, rounds: int = 15) -> None:
    """Time of a training step over that of a forward and backward pass of the U-Net."""
    with tempfile.TemporaryDirectory() as folder:
        show("setting up")
        loop = make_trainer(full, Path(folder)).loop
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(loop.denoiser.training_mode())
            for part in loop.frozen:
                stack.enter_context(part.training_mode())
            runs = {"U-Net forward and backward": bare_pass(loop), "training step": one_step(loop)}
            times = paired_times(runs, rounds)
            parts = shares(loop, max(3, rounds // 3))
    bare, step = runs
    middle, cells = against(times, step, bare)
    rows = [[bare, *against(times, bare, bare)[1]], [step, *cells]]
    table(["what", "seconds (median)", f"over the U-Net, {rounds} rounds"], rows)
    table(["part of a step", "share"], [[name, f"{share:.1%}"] for name, share in parts.items()])
    finish({"step_over_unet": middle, "share_unet": parts["U-Net"]})


if __name__ == "__main__":
    typer.run(main)
