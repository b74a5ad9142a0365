"""The commands ``train`` and ``adapt``: what the training nodes do, without ComfyUI."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from ..backends.models import Model, open_model
from ..conditioning.context import ContextConditioning
from ..conditioning.prompt_encoder import Prompt
from ..conditioning.template import DEFAULT_TEMPLATE
from ..data.splits import SplitSettings
from ..devices import free_memory
from ..errors import InputError
from ..files import file_digest
from ..identity import VALUES
from ..progress import Progress
from ..sampling.schedulers import SchedulerSampler
from ..store import FolderStore
from ..training.adaptation import AdaptationSettings
from ..training.inversion import InversionSettings
from ..training.lora import adapted, load_lora
from ..training.mask_embedding import MaskEmbeddingSettings
from ..training.plans import Base, NormalImages, Start, adaptation_plan, anomaly_plan, control_report, mask_plan
from ..training.session import Trained, TrainingPlan, run_training
from ..training.settings import EmbeddingSettings, StopTraining, TrainingChoices
from .bars import TaskBars
from .errors import plain_errors
from .loading import load_and_show
from .options import with_settings

KINDS = ("anomaly", "mask")
DEFAULT_WORDS = "anomaly"
"""Where tokens inside a prompt start, as in the authors' code."""
PANELS = {"splitting": "Data", "settings": "Training", "choices": "Saving and memory", "images": "Training"}

ModelPath = Annotated[
    Path, typer.Option("--model", help="A diffusers folder (Stable Diffusion 1 or 2), or the demo prior's file.")
]
Data = Annotated[Path, typer.Option(help="Folder that holds the category's folder.")]
Category = Annotated[str, typer.Option(help="Name of the category's folder, for example bottle.")]
Device = Annotated[str, typer.Option(help="For example cpu or cuda; by default a GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="The model computes in float32, bfloat16 or float16.")]


@with_settings(
    splitting=SplitSettings,
    settings=InversionSettings,
    choices=TrainingChoices,
    panels=PANELS,
    leave_out=("preview_every", "preview_steps", "compute"),
)
def train(
    model: ModelPath,
    data: Data,
    category: Annotated[
        list[str],
        typer.Option(
            help="Name of the category's folder, for example bottle. Give it several times to learn the defects of "
            "several objects in one run, with one spatial encoder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the bundle, the loss curve and the summary.")],
    splitting: SplitSettings,
    settings: InversionSettings,
    choices: TrainingChoices,
    kind: Annotated[str, typer.Option(help="anomaly: how defects look; mask: the shapes of their masks.")] = KINDS[0],
    tokens: Annotated[int, typer.Option(min=1, max=64, help="With --kind mask: tokens of each defect type.")] = 4,
    name: Annotated[
        str,
        typer.Option(help="Saved to OUT/NAME_00001.safetensors; the number increases with each run."),
    ] = "",
    initial: Annotated[
        str, typer.Option(help="A text the tokens start near; by default small noise, with --clip 'anomaly'.")
    ] = "",
    clip: Annotated[
        bool, typer.Option(help="Learn the tokens inside a prompt, through the model's text encoder.")
    ] = False,
    template: Annotated[
        str, typer.Option(help="The prompt of --clip; * is where the tokens belong.")
    ] = DEFAULT_TEMPLATE,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="For resnet50_fpn: a file of ImageNet weights, torchvision's resnet50.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="A LoRA from `adapt` that the model is trained with.")] = None,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Learn the defects, or the masks, of a category without ComfyUI.

    The bundle is the one that the training nodes make of the same model, data and settings. Ctrl-C ends the training
    after the running step and keeps what was learned; run the same command again to resume, also after a crash. The
    same training is not done twice.
    """
    with plain_errors(), ExitStack() as stack:
        if kind not in KINDS:
            raise InputError(f"kind: unknown kind '{kind}'. Choose one of: {', '.join(KINDS)}.")
        if kind == KINDS[1] and (clip or encoder_weights):
            raise InputError("kind: a mask embedding has no prompt and no encoder. Leave clip and weights out.")
        dataset = load_and_show(data, category, splitting)
        opened = open_model(model, device, dtype, checkpointing=choices.checkpointing)
        content = {"model": opened.identity, "lora": "" if lora is None else file_digest(lora)}
        base = Base(opened.denoiser, content, lora)
        if lora is not None:
            stack.enter_context(adapted(opened.denoiser, opened.unet, load_lora(lora).tensors))
        start = _start(opened, initial, template if clip else None)
        if kind == KINDS[0]:
            plan = anomaly_plan(base, dataset, settings, start, name or "anomaly_embedding", encoder_weights)
        else:
            shared = {field.name: getattr(settings, field.name) for field in fields(EmbeddingSettings)}
            masks = MaskEmbeddingSettings(**shared, tokens=tokens)
            plan = mask_plan(base, dataset, masks, start, name or "mask_embedding")
        _report(_run(plan, out, base, replace(choices, preview_every=0)), plan)


@with_settings(
    splitting=SplitSettings,
    settings=AdaptationSettings,
    images=NormalImages,
    choices=TrainingChoices,
    panels=PANELS,
    leave_out=("preview_every", "preview_steps", "compute", "balance", "refresh_every"),
)
def adapt(
    model: ModelPath,
    data: Data,
    category: Category,
    out: Annotated[Path, typer.Option(help="Folder for the LoRA, the loss curve and the summary.")],
    splitting: SplitSettings,
    settings: AdaptationSettings,
    images: NormalImages,
    choices: TrainingChoices,
    name: Annotated[
        str, typer.Option(help="Saved to OUT/NAME_00001.safetensors; the number increases with each run.")
    ] = "normals",
    caption: Annotated[
        str | None,
        typer.Option(help="The caption of a normal part; by default the demo prior's own, or 'a photo of CATEGORY'."),
    ] = None,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Tune a LoRA on the normal images of a category, so that the model can redraw a normal part inside a mask.

    Only for a base model that does not know the object, which the control shows; it is measured before and after.
    The file is an ordinary LoRA for the U-Net. Ctrl-C keeps what was learned; run again to resume.
    """
    with plain_errors():
        dataset = load_and_show(data, category, splitting)
        opened = open_model(model, device, dtype, checkpointing=choices.checkpointing)
        rows = {
            "normal": opened.normal(category) if caption is None else opened.caption(caption),
            "negative": opened.caption(""),
        }
        normal, negative = ((row, ContextConditioning(row[None])) for row in rows.values())
        base = Base(opened.denoiser, {"model": opened.identity})
        with TaskBars() as bars, ExitStack() as applied:

            def sampler_with(weights: Any) -> SchedulerSampler:
                applied.close()
                if weights is not None:
                    applied.enter_context(adapted(opened.denoiser, opened.unet, weights))
                return SchedulerSampler(opened.denoiser)

            plan = adaptation_plan(
                base,
                opened.unet,
                dataset,
                settings,
                images,
                normal,
                negative,
                sampler_with,
                bars.of("control"),
                name,
                release=applied.close,
            )
            trained = _run(plan, out, base, replace(choices, preview_every=0), bars)
        _report(trained, plan)
        typer.echo(control_report(trained.learned.metadata))


def _start(model: Model, initial: str, template: str | None) -> Start:
    """What the tokens start from, and the prompt that they are learned in."""
    if template is None:
        metadata = {"initial": initial} if initial else {}
        return Start(model.caption(initial) if initial else None, content=metadata, metadata=metadata)
    encoder, width = model.text_encoder(), model.denoiser.context_width
    if encoder.width != width:
        raise InputError(
            f"clip: the text encoder makes a context of width {encoder.width}, the model takes {width}. Use the text "
            "encoder of the model."
        )
    words = initial or DEFAULT_WORDS
    prompt = Prompt(encoder, template.strip())
    content = {"clip": encoder.fingerprint(VALUES), "template": prompt.template, "words": words}
    return Start(encoder.words(words), prompt, content, {"initial": initial} if initial else {})


def _run(plan: TrainingPlan, out: Path, base: Base, choices: TrainingChoices, bars: TaskBars | None = None) -> Trained:
    """Train with a bar; Ctrl-C and SIGTERM let the running step end, a second one ends at once."""
    store = FolderStore(out)
    with bars or TaskBars() as shown, _Stop() as stop:
        make = shown.of(plan.title)

        def make_progress(total: int) -> Progress:
            return _Stoppable(make(total), stop)

        try:
            return run_training(plan, store, make_progress, lambda: free_memory(base.denoiser.device), choices)
        except StopTraining:
            typer.echo("stopped before the first step", err=True)
            raise typer.Exit(130) from None


def _report(trained: Trained, plan: TrainingPlan) -> None:
    figures = trained.write_summary()
    if trained.resumed:
        typer.echo(trained.resumed, err=True)
    typer.echo(
        f"{trained.path}: {figures['steps']} of {plan.steps} steps in {figures['seconds']} s. {trained.report()} Loss "
        "curve and summary are beside it."
    )
    if trained.stopped_at is not None:
        typer.echo("stopped; run the same command again to resume", err=True)
        raise typer.Exit(130)


class _Stop:
    """Whether somebody asked to stop; as a context manager it listens to Ctrl-C and SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class _Stoppable:
    """A progress that ends a training quietly when somebody asked for it."""

    def __init__(self, inner: Progress, stop: _Stop) -> None:
        self._inner, self._stop = inner, stop

    total = property(lambda self: self._inner.total)
    done = property(lambda self: self._inner.done)

    def step(self, amount: int = 1, preview: Any = None) -> None:
        self.at(self._inner.done + amount, preview)

    def at(self, done: int, preview: Any = None) -> None:
        self._inner.at(done, preview)
        if self._stop.asked:
            raise StopTraining

    def expect(self, amount: int) -> None:
        self._inner.expect(amount)

    def text(self, text: str) -> None:
        self._inner.text(text)
