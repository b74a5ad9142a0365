"""The command ``anomalydiffusion train``: training on a diffusers model folder, without ComfyUI."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.splits import SplitSettings
from .errors import plain_errors
from .options import with_settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..training.loop import StepReport

SETTINGS = "Training"
TRAINING = "training"


@with_settings(splitting=SplitSettings, panels={"splitting": "Data"})
def train(
    model: Annotated[
        Path,
        typer.Option(help="Folder of a diffusers model (unet, vae, scheduler), or a file like the demo prior."),
    ],
    data: Annotated[Path, typer.Option(help="Folder that holds the category, in the MVTec layout.")],
    category: Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle, the loss curve and the summary.")],
    splitting: SplitSettings,
    name: Annotated[str, typer.Option(help="The bundle is OUT/NAME_00001.safetensors, numbered on.")] = (
        "anomaly_embedding"
    ),
    initial: Annotated[
        str, typer.Option(help="A text the tokens start near; by default small noise, with --clip 'anomaly'.")
    ] = "",
    clip: Annotated[
        bool, typer.Option(help="Learn the tokens inside a prompt, through the model's text encoder.")
    ] = False,
    template: Annotated[str, typer.Option(help="The prompt of --clip; * is where the tokens belong.")] = (
        "a photo of a *"
    ),
    device: Annotated[str, typer.Option(help="For example cpu or cuda; by default a GPU where there is one.")] = "",
    dtype: Annotated[str, typer.Option(help="The model computes in float32, bfloat16 or float16.")] = "float32",
    checkpointing: Annotated[
        bool, typer.Option(help="Compute activations twice instead of keeping them: less memory.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between two states in OUT; a crash costs so many.")] = 100,
    resume: Annotated[bool, typer.Option(help="Go on where a stopped training of the same inputs was.")] = True,
    keep_state: Annotated[
        bool, typer.Option(help="Keep the state of a finished training, so that more --steps train it on.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", rich_help_panel=SETTINGS)] = 300,
    batch_size: Annotated[int, typer.Option(help="Pictures in each step.", rich_help_panel=SETTINGS)] = 4,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.", rich_help_panel=SETTINGS)] = 0.005,
    anomaly_tokens: Annotated[int, typer.Option(help="Tokens of each type.", rich_help_panel=SETTINGS)] = 8,
    spatial_tokens: Annotated[int, typer.Option(help="Tokens of a mask.", rich_help_panel=SETTINGS)] = 4,
    encoder: Annotated[
        str, typer.Option(help="Spatial encoder: light, resnet50_fpn, or none.", rich_help_panel=SETTINGS)
    ] = "light",
    encoder_weights: Annotated[
        Path | None,
        typer.Option(
            help="For resnet50_fpn: a file of ImageNet weights, torchvision's resnet50.", rich_help_panel=SETTINGS
        ),
    ] = None,
    resolution: Annotated[
        int, typer.Option(help="Side in pixels at which the pictures are learned.", rich_help_panel=SETTINGS)
    ] = 256,
    augmented_copies: Annotated[
        int, typer.Option(help="Augmented versions of each pair, beside the pair.", rich_help_panel=SETTINGS)
    ] = 8,
    normalize_by_mask_area: Annotated[
        bool, typer.Option(help="Let small defects weigh as much as large ones.", rich_help_panel=SETTINGS)
    ] = False,
    masked_loss: Annotated[
        bool, typer.Option(help="Count the loss inside the mask only, as the paper does.", rich_help_panel=SETTINGS)
    ] = True,
    flips: Annotated[bool, typer.Option(help="Augmentation may mirror.", rich_help_panel=SETTINGS)] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same inputs and seed, same bundle.", rich_help_panel=SETTINGS)] = 0,
    accumulate: Annotated[
        int, typer.Option(help="Batches whose gradients make one step.", rich_help_panel=SETTINGS)
    ] = 1,
    balance: Annotated[
        str, typer.Option(help="types take turns, or all pictures are as likely.", rich_help_panel=SETTINGS)
    ] = "types",
    refresh_every: Annotated[
        int, typer.Option(help="Steps after which one augmented picture is replaced.", rich_help_panel=SETTINGS)
    ] = 0,
    sample_latents: Annotated[
        bool, typer.Option(help="Draw latents from the VAE's posterior, else its mean.", rich_help_panel=SETTINGS)
    ] = False,
    early_stop: Annotated[
        int, typer.Option(help="Stop when the mean loss of so many steps stalls; 0 never.", rich_help_panel=SETTINGS)
    ] = 0,
) -> None:
    """Learn the defects of a category without ComfyUI, on a Stable Diffusion 1.5 model in a diffusers folder.

    The bundle is the one that the node Train Anomaly Embedding makes of the same model, data and settings. Ctrl-C
    ends the training after the running step and keeps what was learned; the same command goes on from there, also
    after a crash.
    """
    with plain_errors():
        from ..backends.models import open_model
        from ..data.mvtec import load_dataset
        from ..training.headless import TrainingJob
        from ..training.headless import train as run
        from ..training.inversion import InversionSettings
        from ..training.settings import LoopOptions

        job = TrainingJob(name, initial, template if clip else None, encoder_weights, save_every, resume, keep_state)

        settings = InversionSettings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            anomaly_tokens=anomaly_tokens,
            spatial_tokens=spatial_tokens,
            encoder=encoder,
            resolution=resolution,
            augmented_copies=augmented_copies,
            normalize_by_mask_area=normalize_by_mask_area,
            masked_loss=masked_loss,
            flips=flips,
            seed=seed,
            options=LoopOptions(accumulate, balance, refresh_every, sample_latents, early_stop),
        )
        dataset = load_dataset(data, category, splitting)
        typer.echo(dataset.describe(), err=True)
        opened = open_model(model, device, dtype, checkpointing=checkpointing)
        with _Bars() as bars, _stop_on_signal(bars):
            trained = run(
                opened,
                dataset,
                settings,
                out,
                job,
                on_step=bars.on_step,
                on_prepare=bars.on_prepare,
                on_notice=bars.on_notice,
            )
        figures = trained.figures
        if trained.resumed:
            typer.echo(trained.resumed, err=True)
        typer.echo(
            f"{trained.bundle}: {figures['steps']} of {steps} steps in {figures['seconds']} s, loss "
            f"{figures['loss_first_tenth']} in the first tenth and {figures['loss_last_tenth']} in the last. Curve "
            f"and summary are beside it."
        )
        if figures["stopped_at_step"] is not None:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise typer.Exit(130)


class _Bars:
    """One bar for the pictures that are encoded and one for the steps, each with the time that is left."""

    def __init__(self) -> None:
        self.stopped = False
        self._bar: tqdm[None] | None = None
        self._title = ""

    def on_prepare(self, done: int, total: int) -> None:
        self._at("encoding pictures", done, total)
        if self.stopped:
            raise KeyboardInterrupt  # nothing was learned yet

    def on_notice(self, text: str) -> None:
        self.close()
        typer.echo(text, err=True)

    def on_step(self, report: StepReport) -> None:
        from ..training.loop import StopTraining

        self._at(TRAINING, report.step, report.total, loss=f"{report.loss:.4f}")
        if self.stopped:
            raise StopTraining

    def _at(self, title: str, done: int, total: int, **figures: str) -> None:
        from tqdm import tqdm

        if self._bar is None or self._title != title:
            self.close()
            # Without a terminal every refresh is a line of its own in a log.
            interval = 0.1 if sys.stderr.isatty() else 15.0
            # A resumed training does not begin at 1; steps that were not made now must not count for the speed.
            first = done - 1 if title == TRAINING else 0
            self._bar, self._title = tqdm(desc=title, total=total, initial=first, mininterval=interval), title
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


@contextmanager
def _stop_on_signal(bars: _Bars) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the running step end; given a second time they end at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if bars.stopped:
            raise KeyboardInterrupt
        bars.stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
