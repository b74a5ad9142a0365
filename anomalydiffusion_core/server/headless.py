"""The job of the quickstart's workflow without ComfyUI: its values come from the file, the core does the work."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..backends.models import open_model
from ..bundles.bundle import AnomalyBundle
from ..bundles.conditioning import anomaly_conditioning
from ..conditioning.context import ContextConditioning
from ..data.export import ExportSettings
from ..data.images import write_image
from ..data.mvtec import load_dataset
from ..data.pairs import load_exported
from ..data.selection import NormalSettings, dataset_sheet
from ..data.splits import SplitSettings, listed_names
from ..devices import compute_device, free_memory
from ..errors import InputError
from ..evaluation.localization.amounts import listed_counts, with_counts
from ..evaluation.localization.objects import evaluate_objects
from ..evaluation.localization.rows import OURS, rows_of
from ..evaluation.localization.runs import RunStore
from ..evaluation.localization.sources import pairs_folder
from ..evaluation.localization.table import Report
from ..evaluation.settings import LocalizerSettings, RowSettings, RunSettings
from ..figures import plot_curve
from ..files import content_key, file_digest, new_folder
from ..masks.change import reconstruction_of
from ..masks.cleanup import MaskRules
from ..masks.collection import CollectionSettings, embedding_masks, sampled_masks
from ..masks.refine import RefineSettings
from ..masks.relabel import finish_labels
from ..options import build, declared
from ..progress import MakeProgress
from ..sampling.generation import STATE, PairGeneration
from ..sampling.run import BlendingSettings
from ..sampling.sampler import SamplingSettings
from ..sampling.schedulers import SchedulerSampler
from ..store import FolderStore
from ..training.inversion import InversionSettings
from ..training.mask_embedding import MaskEmbeddingSettings
from ..training.plans import Base, Start, anomaly_plan, mask_plan
from ..training.session import Trained, TrainingPlan, run_training
from .process import REPOSITORY, peak_memory
from .results import EVALUATION, PAIRS, Results, summary
from .runs import Finished, finish
from .workflow import (
    CHECKPOINT_NODE,
    DATASET_NODE,
    EVALUATION_NODE,
    EXPORT_NODE,
    MASK_SAMPLER,
    MASK_TRAINING,
    NORMALS,
    SAMPLER,
    TRAINING,
    Workflow,
    find_node,
)

IMAGES = "pictures"
Bars = Callable[[str], MakeProgress]
"""The title of a step to what makes its progress."""
S = TypeVar("S")


def run_headless(workflow: Workflow, root: Path, out: Path, bars: Bars, replace_out: bool = False) -> Finished:
    """Do the work of the quickstart's workflow, and leave in ``out`` the files that ``runs.run_workflow`` leaves.

    root: what the folder of the data set in the workflow is relative to. Until all has succeeded, what is finished is
    kept in a hidden folder beside ``out``, from which the same call resumes. Raises InputError for a workflow that
    lacks a node of the quickstart's, or compares with other methods.
    """
    started = time.monotonic()
    with new_folder(out, replace_out) as draft:
        job = _Quickstart(workflow, root, out.with_name(f".{out.name}.{content_key(workflow)}"), bars)
        job.generate(job.train_anomaly(), job.train_masks())
        shutil.copytree(job.work / PAIRS, draft / PAIRS, ignore=shutil.ignore_patterns(STATE))
        report = job.evaluate()
        (draft / EVALUATION).mkdir()
        report.write(draft / EVALUATION)
        for name, image in job.images.items():
            write_image(draft / IMAGES / f"{name}.png", image)
        results = Results(out, load_exported(draft / PAIRS), report.figures, job.reports)
        figures = summary(results, time.monotonic() - started, peak_memory(os.getpid()) / 1e9)
        finish(draft, figures)
    shutil.rmtree(job.work)
    results.pairs = load_exported(out / PAIRS)
    return Finished(results, figures)


class _Quickstart:
    """The steps of the workflow. reports: what each said, by node id. images: what is worth a look, by name."""

    def __init__(self, workflow: Workflow, root: Path, work: Path, bars: Bars) -> None:
        self.workflow, self.work, self._bars = workflow, work, bars
        self.model = open_model(REPOSITORY / "models" / self._values(CHECKPOINT_NODE)["checkpoint"])
        values = self._values(DATASET_NODE)
        split = self._settings(DATASET_NODE, SplitSettings)
        self.dataset = load_dataset(root / values["folder"], values["category"], split)
        for name in ("methods", "weights"):
            if self._values(EVALUATION_NODE).get(name):
                raise InputError(f"{name}: is given, but only the generated pairs are tested here. Use `evaluate`.")
        for node in (TRAINING, MASK_TRAINING, MASK_SAMPLER, NORMALS, SAMPLER, EXPORT_NODE):
            find_node(workflow, node)  # what lacks should show before the first training
        self.reports: dict[str, list[str]] = {}
        self.images = {"dataset": dataset_sheet(self.dataset)}
        self._report(DATASET_NODE, self.dataset.describe())

    def train_anomaly(self) -> Trained:
        """The node Train Anomaly Embedding."""
        settings = self._settings(TRAINING, InversionSettings)
        return self._train(TRAINING, anomaly_plan(self._base, self.dataset, settings, *self._start(TRAINING)))

    def train_masks(self) -> Trained:
        """The node Train Mask Embedding."""
        settings = self._settings(MASK_TRAINING, MaskEmbeddingSettings)
        return self._train(MASK_TRAINING, mask_plan(self._base, self.dataset, settings, *self._start(MASK_TRAINING)))

    def generate(self, anomaly: Trained, masks: Trained) -> None:
        """The nodes from Mask Embedding Sampler to Export Pairs, with the same seeds for each type."""
        sampler = SchedulerSampler(self.model.denoiser)
        negative, normal = (
            ContextConditioning(rows[None]) for rows in (self.model.caption(""), self.model.normal(""))
        )
        generation = PairGeneration(
            sampler,
            self.dataset,
            [kind.key for kind in self.dataset.types],
            lambda key: self._masks(sampler, masks.learned, key, negative),
            partial(anomaly_conditioning, anomaly.learned),
            negative,
            normal,
            masks.learned.learned_from,
            self._settings(NORMALS, NormalSettings),
            self._settings(SAMPLER, BlendingSettings),
            self._settings(EXPORT_NODE, ExportSettings),
        )
        plan = {"bundles": [file_digest(anomaly.path), file_digest(masks.path)], "masks": self._values(MASK_SAMPLER)}
        generated = generation.run(self.work / PAIRS, plan, self._bars("generating pairs"))
        self._report(SAMPLER, generated.report)
        labels = finish_labels(
            self.work / PAIRS,
            self._settings(EXPORT_NODE, RefineSettings),
            self._settings(EXPORT_NODE, ExportSettings),
            lambda: reconstruction_of(self.model.denoiser, self.model.denoiser.device),
            self.dataset,
            self._bars("refining labels"),
        )
        if labels:
            self._report(EXPORT_NODE, "\n".join(labels))

    def _masks(
        self, sampler: SchedulerSampler, bundle: AnomalyBundle, key: str, negative: ContextConditioning
    ) -> tuple[Tensor, str]:
        """The node Mask Embedding Sampler."""
        wanted = self._settings(MASK_SAMPLER, CollectionSettings)
        sampling = self._settings(MASK_SAMPLER, SamplingSettings)
        rules = self._settings(MASK_SAMPLER, MaskRules)
        source = embedding_masks(
            sampler,
            bundle,
            key,
            ContextConditioning,
            negative,
            sampling,
            wanted.size,
            rules,
            shape_range=wanted.shape_range,
        )
        return sampled_masks(source, key, wanted, self._bars(f"sampling masks of {key}"))

    def evaluate(self) -> Report:
        """The node Evaluate Localization."""
        pairs = pairs_folder(self.work / PAIRS)
        wanted = self._settings(EVALUATION_NODE, RowSettings)
        rows = with_counts(
            rows_of(listed_names(wanted.training_sets), {OURS: pairs}), listed_counts(wanted.pair_counts)
        )
        settings = self._settings(EVALUATION_NODE, LocalizerSettings)
        seeds = self._settings(EVALUATION_NODE, RunSettings).seeds
        store, bars = RunStore(self.work / "runs"), self._bars("training detectors")
        return evaluate_objects(
            self.dataset, rows, settings, seeds, pairs, store, bars, compute_device(), pairs_folder=PAIRS
        )

    @property
    def _base(self) -> Base:
        return Base(self.model.denoiser, {"model": self.model.identity})

    def _train(self, node: str, plan: TrainingPlan) -> Trained:
        device = self.model.denoiser.device
        trained = run_training(
            plan, FolderStore(self.work / "bundles"), self._bars(f"training {plan.title}"), lambda: free_memory(device)
        )
        self.images[plan.name] = plot_curve(trained.losses, plan.title)
        self._report(node, trained.report())
        return trained

    def _start(self, node: str) -> tuple[Start, str]:
        """What a training starts from, and the name of its file."""
        inputs = self.workflow[find_node(self.workflow, node)]["inputs"]
        caption = str(self.workflow[inputs["initial"][0]]["inputs"]["caption"])
        return Start(self.model.caption(caption), content={"initial": caption}), inputs["name"]

    def _values(self, node: str) -> dict[str, Any]:
        """The inputs of the one node of a class that are not connected."""
        inputs = self.workflow[find_node(self.workflow, node)]["inputs"]
        return {name: value for name, value in inputs.items() if not isinstance(value, list)}

    def _settings(self, node: str, settings: type[S]) -> S:
        values = self._values(node)
        made: S = build(settings, {name: values[name] for name in declared(settings) if name in values})
        return made

    def _report(self, node: str, text: str) -> None:
        self.reports[find_node(self.workflow, node)] = [text]
