"""Evaluate Localization, Classification and Generation: what the generated images are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..anomalydiffusion_core.data.images import read_image
from ..anomalydiffusion_core.data.mvtec import AnomalyDataset
from ..anomalydiffusion_core.data.splits import listed_names
from ..anomalydiffusion_core.errors import InputError
from ..anomalydiffusion_core.evaluation.settings import (
    ClassifierData,
    ClassifierSettings,
    GenerationSettings,
    LocalizerSettings,
    OverlapSettings,
    RowSettings,
    RunSettings,
)
from ..anomalydiffusion_core.lazy_imports import later
from ..anomalydiffusion_core.options import build
from .host import evaluation as host
from .host import folders, tensors
from .host.progress import Progress, compute_device
from .host.versions import as_advanced, schema
from .inputs import folder_input, inputs_of
from .sockets import CATEGORY, Dataset, shown

if TYPE_CHECKING:
    from ..anomalydiffusion_core.evaluation.classification import objects as classification
    from ..anomalydiffusion_core.evaluation.generation import table as generation
    from ..anomalydiffusion_core.evaluation.localization import amounts
    from ..anomalydiffusion_core.evaluation.localization import objects as localization_objects
    from ..anomalydiffusion_core.evaluation.localization import rows as table_rows
    from ..anomalydiffusion_core.evaluation.localization import runs as finished
    from ..anomalydiffusion_core.evaluation.localization import sources as pair_sources
    from ..anomalydiffusion_core.evaluation.localization import table as localization
    from ..anomalydiffusion_core.evaluation.results import Result
else:
    classification = later("..anomalydiffusion_core.evaluation.classification.objects", __package__)
    generation = later("..anomalydiffusion_core.evaluation.generation.table", __package__)
    amounts = later("..anomalydiffusion_core.evaluation.localization.amounts", __package__)
    localization_objects = later("..anomalydiffusion_core.evaluation.localization.objects", __package__)
    table_rows = later("..anomalydiffusion_core.evaluation.localization.rows", __package__)
    finished = later("..anomalydiffusion_core.evaluation.localization.runs", __package__)
    pair_sources = later("..anomalydiffusion_core.evaluation.localization.sources", __package__)
    localization = later("..anomalydiffusion_core.evaluation.localization.table", __package__)

RARE = "width batch_size learning_rate flips rotations generated_share".split()
"""Of the settings of a training, what the page shows on demand only."""


def _folders_input(more: str = "") -> io.Input:
    text = (
        "Folders of generated images, one per line, used together: absolute, or relative to ComfyUI's output folder."
    )
    return io.String.Input("pairs", default="", multiline=True, tooltip=text + more)


def _result_outputs(folder: str = "result") -> list[io.Output]:
    return [
        io.String.Output("metrics", display_name="metrics", tooltip="All numbers and settings as JSON."),
        io.String.Output(f"{folder}_folder", display_name=f"{folder} folder", tooltip="The folder with all of this."),
    ]


class EvaluateLocalization(io.ComfyNode):
    """One small detector trained on different pairs, tested on held-out real defects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        lines: dict[str, Any] = {"default": "", "multiline": True, "optional": True}
        main = "size width steps batch_size learning_rate flips rotations generated_share".split()
        return schema(
            node_id="AnomalyDiffusionEvaluateLocalization",
            search_aliases="segmentation, U-Net, AUROC, AP, PRO, benchmark, defect detector, MVTec".split(", "),
            display_name="Evaluate Localization",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Trains a segmentation network on the few real training pairs and normal images, then again with the "
                "generated pairs added or on those of other methods, with several seeds, and tests all of them on the "
                "real defects kept for testing. By default the test set chooses nothing. No run is made twice."
            ),
            inputs=[
                Dataset.Input(
                    "dataset", tooltip="Provides the normal images, the few training pairs, and the test set."
                ),
                io.String.Input(
                    "pairs",
                    default="",
                    tooltip=(
                        "Folder of pairs: from Export Pairs, absolute, or relative to ComfyUI's output folder. Leave "
                        "empty when images are connected. Several folders, separated by semicolons or in a list, are "
                        "sets made independently: the spread is then over the sets."
                    ),
                ),
                *inputs_of(LocalizerSettings, main, advanced=RARE),
                *inputs_of(RunSettings, advanced=["seed"]),
                folder_input("evaluation"),
                *inputs_of(RowSettings, ("training_sets",), optional=True),
                as_advanced(
                    io.String.Input(
                        "methods",
                        tooltip=(
                            "Folders of pairs of other methods or baselines, one NAME=FOLDER per line. A name on "
                            "several lines has so many independent sets."
                        ),
                        **lines,
                    )
                ),
                *inputs_of(LocalizerSettings, ("selection", "check_every"), optional=True, advanced=True),
                as_advanced(
                    io.String.Input(
                        "weights",
                        tooltip=(
                            "Trained networks that are only tested, one NAME=FILE per line: the authors' .pckl or "
                            ".safetensors, absolute or relative to models/anomalydiffusion."
                        ),
                        **lines,
                    )
                ),
                io.String.Input(
                    "defect_type",
                    default="",
                    optional=True,
                    tooltip="Type of the connected images as object/defect; connect the list types for several.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Pairs straight from the sampler, instead of a folder."
                ),
                io.Mask.Input("masks", optional=True, tooltip="The masks of the connected images."),
                *inputs_of(LocalizerSettings, ("any_angle",), optional=True, advanced=True),
                *inputs_of(OverlapSettings, optional=True, advanced=True),
                *inputs_of(LocalizerSettings, ("view", "tile_scale"), optional=True, advanced=True),
                *inputs_of(RowSettings, ("pair_counts",), optional=True, advanced=True),
            ],
            outputs=[
                io.String.Output(
                    "table", display_name="table", tooltip="Mean and spread of all metrics, as Markdown."
                ),
                io.Image.Output(
                    "heat_maps",
                    display_name="heat maps",
                    tooltip="Test image, mask, and the heat map of each row of the table.",
                ),
                io.Image.Output(
                    "contact_sheet",
                    display_name="contact sheet",
                    tooltip="Normal image, mask, generated image, and the heat map of a test image.",
                ),
                *_result_outputs("evaluation"),
                io.Image.Output(
                    "curves",
                    display_name="curves",
                    tooltip="Loss, precision over recall, and overlap over false positive rate (PRO) of each row.",
                ),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs: Any = None, methods: Any = None, weights: Any = None, **_: object) -> str:
        return host.fingerprint(
            lambda: [
                *_text(pairs).replace(";", "\n").splitlines(),
                *(
                    one
                    for several in table_rows.repeated_values(_text(methods), "methods").values()
                    for one in several
                ),
            ],
            lambda: table_rows.named_values(_text(weights), "weights", "NAME=FILE").values(),
        )

    @classmethod
    def execute(
        cls,
        methods: Any = "",
        weights: Any = "",
        defect_type: Any = "",
        images: Any = None,
        masks: Any = None,
        **single: Any,
    ) -> io.NodeOutput:
        options = {name: _single(name, value) for name, value in single.items() if name != "pairs"}
        data: AnomalyDataset = options["dataset"]
        seeds, wanted = build(RunSettings, options).seeds, build(RowSettings, options)
        settings = build(LocalizerSettings, options)
        place = host.result_place(options["folder"])
        place.check()
        own, where = _own_pairs(_text(single["pairs"]), images, masks, defect_type, f"{data.object}/generated")
        sources = table_rows.methods_of(own, _text(methods), host.readable_folder, "methods")
        files = table_rows.named_values(_text(weights), "weights", "NAME=FILE")
        networks = {label: host.weights_file(text) for label, text in files.items()}
        chosen = table_rows.rows_of(listed_names(wanted.training_sets), sources, networks)
        rows = amounts.with_counts(chosen, amounts.listed_counts(wanted.pair_counts))
        runs = finished.RunStore(host.runs_folder())
        shown_here = {"progress": Progress, "device": compute_device(), "previews": True, "pairs_folder": where}
        shown_here["allow_overlap"] = build(OverlapSettings, options).allow_overlap
        report = localization_objects.evaluate_objects(
            data, rows, settings, seeds, own[0] if own else None, runs, **shown_here
        )
        with place.new() as made:
            report.write(made.path)
        return _report_output(report, made.final)


class EvaluateClassification(io.ComfyNode):
    """A ResNet is trained to tell the defect types apart on generated images and tested on held-out real ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = "architecture size width steps batch_size learning_rate flips rotations".split()
        return schema(
            node_id="AnomalyDiffusionEvaluateClassification",
            search_aliases="ResNet, classifier, accuracy, confusion matrix, benchmark".split(", "),
            display_name="Evaluate Classification",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Trains a ResNet to tell the defect types apart, with several seeds, and counts which real defects "
                "kept for testing it recognizes. The test set chooses nothing. The same evaluation is not computed "
                "twice."
            ),
            inputs=[
                Dataset.Input("dataset", tooltip="Provides the few training images and the test set."),
                _folders_input(" Masks are not required."),
                *inputs_of(ClassifierData, ("training_set",)),
                *inputs_of(ClassifierSettings, settings, advanced=RARE),
                *inputs_of(RunSettings, advanced=["seed"]),
                *inputs_of(ClassifierSettings, ("weights",), advanced=True, weights={"default": ""}),
                *inputs_of(ClassifierData, ("method",), advanced=True),
                folder_input("classification"),
                *inputs_of(OverlapSettings, optional=True, advanced=True),
                *inputs_of(ClassifierSettings, ("view", "tile_scale"), optional=True, advanced=True),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Accuracy over all seeds, as Markdown."),
                io.Image.Output(
                    "confusion", display_name="confusion matrix", tooltip="True against recognized types, all seeds."
                ),
                *_result_outputs(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs: str | None = None, weights: str | None = None, **_: object) -> str:
        return host.fingerprint(lambda: (pairs or "").splitlines(), lambda: [weights or ""])

    @classmethod
    def execute(cls, dataset: AnomalyDataset, pairs: str, folder: str, weights: str, **options: Any) -> io.NodeOutput:
        options["weights"] = host.weights_file(weights) if weights.strip() else None
        data, runs = build(ClassifierData, options), build(RunSettings, options)
        chosen = host.readable_folders(pairs) if data.uses_generated else []
        table = classification.classification_table(
            dataset, chosen, data, build(ClassifierSettings, options), runs, build(OverlapSettings, options)
        )
        shown_folders = [folders.relative_to_output(path) for path in chosen]
        place = host.result_place(folder)
        return _result_output(table.result(place, Progress, compute_device(), pairs_folders=shown_folders))


class EvaluateGeneration(io.ComfyNode):
    """Inception Score, IC-LPIPS, effect score, and a check for copies of the training defects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionEvaluateGeneration",
            search_aliases="Inception Score, IC-LPIPS, diversity, quality, memorization".split(", "),
            display_name="Evaluate Generation",
            category=f"{CATEGORY}/evaluation",
            description=(
                "Measures generated images without any training: Inception Score, both forms of IC-LPIPS, effect "
                "score, and how near they are to the training defects. Networks come from local files only."
            ),
            inputs=[
                Dataset.Input(
                    "dataset", tooltip="Provides the training pairs that the generated images are compared with."
                ),
                _folders_input(),
                *inputs_of(GenerationSettings, advanced=["splits", "most_pictures", "seed", "method"]),
                folder_input("generation"),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="All metrics by defect type, as Markdown."),
                io.Image.Output(
                    "nearest",
                    display_name="nearest",
                    tooltip="The generated defects that are nearest to a training defect, beside it.",
                ),
                *_result_outputs(),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs: str | None = None, **_: object) -> str:
        return host.fingerprint(lambda: (pairs or "").splitlines())

    @classmethod
    def execute(cls, dataset: AnomalyDataset, pairs: str, folder: str, **options: Any) -> io.NodeOutput:
        chosen = host.readable_folders(pairs)
        for name in ("inception_weights", "lpips_weights"):
            host.check_readable(options.get(name, ""), name)
        device = compute_device()
        table = generation.GenerationTable(dataset, chosen, GenerationSettings(**options), device)
        shown_folders = [folders.relative_to_output(path) for path in chosen]
        return _result_output(table.result(host.result_place(folder), Progress, device, pairs_folders=shown_folders))


def _report_output(report: localization.Report, final: Path) -> io.NodeOutput:
    metrics, where = json.dumps(report.figures), folders.relative_to_output(final)
    shown_files = [amounts.AMOUNTS, *localization.IMAGES] if report.amounts is not None else localization.IMAGES
    images = [folders.output_image(final / name) for name in shown_files]
    return io.NodeOutput(
        report.table,
        tensors.to_host_images(report.heat_maps),
        tensors.to_host_images(report.contact_sheet),
        metrics,
        final.as_posix(),
        tensors.to_host_images(report.curves),
        ui={**shown(report.table, evaluation_folder=[where], metrics=[metrics]), "images": images},
    )


def _result_output(result: Result) -> io.NodeOutput:
    metrics, where = json.dumps(result.figures), folders.relative_to_output(result.folder)
    again = f"\n\nRead again from {where}: the same evaluation was made before." if result.again else ""
    ui = shown(result.table + again, result_folder=[where], metrics=[metrics])
    image = tensors.to_host_images(read_image(result.image))
    return io.NodeOutput(
        result.table,
        image,
        metrics,
        result.folder.as_posix(),
        ui={**ui, "images": [folders.output_image(result.image)]},
    )


def _own_pairs(
    pairs: str, images: Any, masks: Any, defect_type: Any, fallback: str
) -> tuple[list[pair_sources.PairSource], str | None]:
    """The sets of pairs under test, connected or in folders, and the folders as they are reported."""
    if images is not None or masks is not None:
        if pairs.strip():
            raise InputError("pairs: a folder is given and images are connected. Use one of the two.")
        batches = [tensors.to_core_images(batch, "images") for batch in _list(images)]
        inside = [tensors.to_core_masks(batch, "masks") for batch in _list(masks)]
        return [pair_sources.pair_batches(batches, inside, _list(defect_type), fallback)], None
    found = [host.readable_folder(text) for text in pairs.replace(";", "\n").splitlines() if text.strip()]
    if not found:
        return [], None
    return [pair_sources.pairs_folder(one) for one in found], ", ".join(
        folders.relative_to_output(one) for one in found
    )


def _list(value: Any) -> list[Any]:
    """The entries of an input: ComfyUI gives lists to a node that takes lists, and (None,) for what is connected."""
    entries = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in entries if entry is not None]


def _single(name: str, value: Any) -> Any:
    entries = _list(value)
    if len(entries) != 1:
        raise InputError(f"{name}: {len(entries)} entries. Connect one.")
    return entries[0]


def _text(value: Any) -> str:
    return "\n".join(entry for entry in _list(value) if entry)
