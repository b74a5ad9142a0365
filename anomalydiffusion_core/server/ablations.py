"""The paper's ablations (Tables 6 to 9): each row is one run of a workflow with other inputs.

A variant never changes the graph, only inputs, so that everything else is the same by construction. Rows of different
tables that set the same ("full") are run once. The reduced protocol is for a CPU, the demo prior and rendered
images, and is called reduced wherever its numbers are shown; the full one needs a GPU and a data set like MVTec AD.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.published import load_table
from ..evaluation.settings import LAST_STEP
from ..evaluation.tables.build import build_tables
from ..evaluation.tables.files import write_tables
from ..evaluation.tables.records import FILE_NAME, ResultRecord, find_records, read_records, write_records
from ..evaluation.tables.text import to_markdown
from ..files import new_folder, replacing
from ..masks.cleanup import AUTHORS_THRESHOLD
from ..masks.refine import MODES
from ..sampling.reweighting import ANOMALY_TOKENS, DECODED, PAPER
from ..scale import WHOLE
from ..synthetic.fewshot import CATEGORY, render_fewshot_set
from ..training.settings import TrainingChoices
from .client import OnProgress
from .runs import QUICKSTART, SUMMARY, run_workflow, server_at
from .workflow import (
    DATASET_NODE,
    EVALUATION_NODE,
    EXPORT_NODE,
    MASK_SAMPLER,
    MASK_TRAINING,
    NORMALS,
    SAMPLER,
    TRAINING,
    Workflow,
    describe_nodes,
    load_workflow,
    nodes_of_class,
    parse_assignment,
    with_dataset,
    with_inputs,
)

TRAINING_OPTIONS = "AnomalyDiffusionTrainingOptions"
SEEDED = (TRAINING, MASK_TRAINING, SAMPLER, MASK_SAMPLER, NORMALS)
SEED_STEP = 1000
TABLES = "tables"
IMAGES = "pictures"

ClassInputs = Mapping[str, Mapping[str, Any]]

_NO_SAE = {"encoder": "none"}
_UNMASKED = {"masked_loss": False}
_NO_AAR = {"reweighting": "off"}
_FULL: ClassInputs = {}
_TOKENS = {"spatial_tokens": 4, "anomaly_tokens": 8}
# A weak sample counts: drawing it again or leaving it out would hide what an ablation takes away.
_UNFILTERED = {"min_effect": 0.0}
LABELS = {f"labels_{mode}": mode for mode in MODES[1:]}
"""Rows beside those of Table 6 that the paper does not have: the full method with other labels than drawn masks."""
_ONE_TEST_SET = {"test_rate": 50}
"""The second half of each type tests whatever the rate of training pairs is (Table 7: 10 to 50)."""
_DDIM = {"sampler_name": "euler_ancestral", "scheduler": "ddim_uniform"}
"""DDIM with eta 1, as the authors sample: its step and noise are those of Euler's ancestral method."""
_ALONE = {"generated_share": 1.0, "training_sets": "generated"}


@dataclass(frozen=True)
class Variant:
    """One model to train and measure.

    Attributes:
        inputs: node class -> input -> value.
        places: (table, row key) of every row that it fills.
    """

    inputs: ClassInputs
    places: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        table, row = self.places[0]
        return f"table_{table}_{row}"


@dataclass(frozen=True)
class Protocol:
    """Budgets that all variants of an ablation share, and how a share of training images is asked for.

    options: of each training, in a Training Options node of its own.
    """

    name: str
    inputs: ClassInputs
    rate: Callable[[int], Mapping[str, Any]]
    reduced: bool
    text: str = field(default="")
    options: ClassInputs = field(default_factory=dict)


# 26 rendered pairs of each type: 10 per cent are 2 of them. The paper's 14 rows take about an hour on one CPU core.
REDUCED = Protocol(
    "reduced",
    {
        TRAINING: {**_TOKENS, "steps": 100},
        MASK_SAMPLER: {"count": 8},
        NORMALS: {"count": 8},
        SAMPLER: {**_UNFILTERED, "control_samples": 0},
        EXPORT_NODE: _UNFILTERED,
        EVALUATION_NODE: {**_ALONE, "steps": 400},
    },
    lambda percent: {"split": "first n", "train_count": 26 * percent // 100, **_ONE_TEST_SET},
    True,
    "demo prior and rendered images, 100 training steps, 8 pairs of each type; says nothing about MVTec AD",
)
# What paper and code agree on, else what the paper says, else what the code does; `text` says where they differ.
FULL = Protocol(
    "full",
    {
        DATASET_NODE: {"defects": "", "test_rate": 0, "validation_rate": 0},
        TRAINING: {
            **_TOKENS,
            "steps": 300000,
            "batch_size": 4,
            "learning_rate": 0.005,
            "encoder": "resnet50_fpn",
            "resolution": 256,
            "augmented_copies": 1,
            "flips": True,
            "normalize_by_mask_area": False,
            "masked_loss": True,
            "view": WHOLE,
            "initial_words": "anomaly",
        },
        MASK_TRAINING: {
            "tokens": 4,
            "steps": 30000,
            "batch_size": 4,
            "learning_rate": 0.005,
            "resolution": 256,
            "augmented_copies": 0,
            "flips": False,
            "view": WHOLE,
        },
        MASK_SAMPLER: {
            "count": 1000,
            "size": 256,
            "cfg": 5.0,
            "steps": 100,
            **_DDIM,
            "threshold": AUTHORS_THRESHOLD,
            "smallest_area": 0.0,
            "largest_area": 1.0,
            "most_components": 0,
            "speck_area": 0.0,
            "fill_holes": False,
            "border_rule": True,
            "shape_range": 0.0,
        },
        NORMALS: {"count": 1000, "size": 256},
        SAMPLER: {
            **_UNFILTERED,
            "steps": 200,
            "cfg": 1.0,
            **_DDIM,
            "denoise": 1.0,
            "batch_size": 8,
            "reweighting": PAPER,
            "strength": 1.0,
            "cap": 1_000_000.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "difference": DECODED,
            "decode_every": 1,
            "token_scope": ANOMALY_TOKENS,
            "temperature": 1.0,
            "raw_difference": False,
            "crop": "off",
            "feather": 0,
            "grey_lock": False,
            "retries": 0,
            "control_samples": 0,
        },
        EXPORT_NODE: {**_UNFILTERED, "refine": MODES[0], "jpeg_quality": 0, "match_camera": False},
        EVALUATION_NODE: {
            **_ALONE,
            "size": 256,
            "width": 64,
            "steps": 12600,
            "batch_size": 8,
            "learning_rate": 0.0001,
            "flips": False,
            "rotations": False,
            "any_angle": False,
            "selection": LAST_STEP,
            "view": WHOLE,
        },
    },
    lambda percent: {"split": "lowest rate", "train_rate": percent, **_ONE_TEST_SET},
    False,
    "quantities of the paper, or of its code where it is silent: 300000 steps of 4 for defects and 30000 for masks, "
    "half of the images augmented and mirrored and one renewed at each step, images drawn evenly, posterior samples, "
    "ResNet-50 encoder, 1000 masks at guidance 5 and 1000 pairs of each type in 200 DDIM steps with the noise of eta "
    "1 (Euler's ancestral method), Eq. 7 with a softmax on decoded images at every step, 12600 steps of the detector. "
    "Different: base model and token route are those of the workflow (paper: latent diffusion with a prompt); rates "
    "of learning as in the paper, 0.005 (code: 0.02); 4 mask tokens as in the main text (supplement: 2, code: 16); "
    "the difference of Eq. 7 is divided by its mean, since the literal softmax leaves all weight on one pixel; the "
    "lowest third trains (code: one more, which it also tests on); the mean of the posterior is where a normal image "
    "starts; pixels outside the mask are kept (code: decoded, as JPEG); no pair is left out by hand; the detector is "
    "that of the last step (code: best epoch on the test set)",
    options={
        TRAINING: {
            "refresh_every": 1,
            "sample_latents": True,
            "balance": "pictures",
            "early_stop": 0,
            "accumulate": 1,
        },
        MASK_TRAINING: {"refresh_every": 0, "sample_latents": True, "early_stop": 0, "accumulate": 1},
    },
)
PROTOCOLS = {protocol.name: protocol for protocol in (REDUCED, FULL)}


def variants(protocol: Protocol, tables: Sequence[int] = ()) -> list[Variant]:
    """The variants of these tables (6 to 9, all when empty), each once however many rows it fills.

    Raises InputError for another table.
    """
    chosen = tuple(tables) or (6, 7, 8, 9)
    places = _places(protocol)
    wrong = [number for number in chosen if number not in places]
    if wrong:
        raise InputError(f"table: {wrong[0]} is no ablation. Give some of {', '.join(map(str, places))}.")
    found: list[Variant] = []
    for number in dict.fromkeys(chosen):
        for row, inputs in places[number].items():
            assert row in load_table(number).rows or row in LABELS
            same = [i for i, variant in enumerate(found) if variant.inputs == inputs]
            if same:
                variant = found[same[0]]
                found[same[0]] = replace(variant, places=(*variant.places, (number, row)))
            else:
                found.append(Variant(inputs, ((number, row),)))
    return found


def _places(protocol: Protocol) -> dict[int, dict[str, ClassInputs]]:
    def tokens(spatial: int, anomaly: int) -> ClassInputs:
        return {TRAINING: {"spatial_tokens": spatial, "anomaly_tokens": anomaly}}

    return {
        6: {
            "none": {TRAINING: {**_NO_SAE, **_UNMASKED}, SAMPLER: _NO_AAR},
            "sae": {TRAINING: _UNMASKED, SAMPLER: _NO_AAR},
            "sae_masked": {SAMPLER: _NO_AAR},
            "masked_aar": {TRAINING: _NO_SAE},
            "full": _FULL,
            **{row: {EXPORT_NODE: {"refine": mode}} for row, mode in LABELS.items()},
        },
        7: {f"rate_{percent}": {DATASET_NODE: protocol.rate(percent)} for percent in (10, 20, 30, 40, 50)},
        8: {
            "s4_a8": _FULL,
            "s4_a16": tokens(4, 16),
            "s8_a8": tokens(8, 8),
            "s8_a16": tokens(8, 16),
        },
        9: {
            "ti_p2p": {TRAINING: {**_NO_SAE, **_UNMASKED}, SAMPLER: {"reweighting": "prompt-to-prompt"}},
            "full": _FULL,
        },
    }


def variant_workflow(workflow: Workflow, protocol: Protocol, variant: Variant, seed: int = 0) -> Workflow:
    """A copy of a workflow with the protocol's budgets, the variant's inputs, and all seeds moved on by `seed` runs.

    Raises InputError where the workflow lacks a node that they name, or the input comes from another node.
    """
    changed = copy.deepcopy(workflow)
    if protocol.options:
        _set_options(changed, protocol.options)
    for inputs in (protocol.inputs, variant.inputs):
        _set(changed, inputs)
    _connect_labels(changed)
    for name in SEEDED:
        for node in nodes_of_class(changed, name):
            changed[node]["inputs"]["seed"] += SEED_STEP * seed
    return changed


def _set_options(workflow: Workflow, options: ClassInputs) -> None:
    """Give each training the options of its class, in a node of its own: others may be meant for another training."""
    for name, values in options.items():
        for node in nodes_of_class(workflow, name):
            given = workflow[node]["inputs"].get("options")
            choices = {key: value for key, value in asdict(TrainingChoices()).items() if key != "loop"}
            inputs = {**choices, **asdict(TrainingChoices().loop), **(workflow[given[0]]["inputs"] if given else {})}
            workflow[f"{node}_options"] = {"class_type": TRAINING_OPTIONS, "inputs": {**inputs, **values}}
            workflow[node]["inputs"]["options"] = [f"{node}_options", 0]


def _set(workflow: Workflow, inputs: ClassInputs) -> None:
    for name, values in inputs.items():
        nodes = nodes_of_class(workflow, name)
        if not nodes:
            raise InputError(f"workflow: it has no node {name}. It has {describe_nodes(workflow)}.")
        for node in nodes:
            for key, value in values.items():
                if isinstance(workflow[node]["inputs"].get(key), list):
                    raise InputError(f"workflow: input {key!r} of node {node} is connected. An ablation sets it.")
                workflow[node]["inputs"][key] = value


def _connect_labels(workflow: Workflow) -> None:
    """Labels other than the drawn masks follow from the sampler's VAE and the evaluation's data set."""
    for node in nodes_of_class(workflow, EXPORT_NODE):
        inputs = workflow[node]["inputs"]
        if inputs.get("refine", MODES[0]) != MODES[0]:
            for name, source in (("vae", SAMPLER), ("dataset", EVALUATION_NODE)):
                inputs.setdefault(name, workflow[nodes_of_class(workflow, source)[0]]["inputs"][name])


def label_results(
    folder: Path, variant: Variant, protocol: Protocol, workflow: Workflow | None = None
) -> list[ResultRecord]:
    """Turn the results of a finished run, anywhere below its own folder, into rows of the ablation tables.

    Only what was trained on generated pairs alone counts, as in the paper. A detector that was trained on pairs of an
    ablated model is not "Ours", so the file is replaced. A folder that is labelled already stays as it is. The records
    keep what every node of the ``workflow`` was set to.
    """
    set_to = {} if workflow is None else settings_of(workflow)
    labelled: list[ResultRecord] = []
    for path in sorted(folder.rglob(FILE_NAME)):
        records = read_records(path)
        if all(record.table is not None for record in records):
            labelled += records
            continue
        own = [
            replace(
                record,
                table=table,
                row=row,
                reduced=protocol.reduced or record.reduced,
                budget={**record.budget, "protocol": f"{protocol.name} ({protocol.text})"},
                settings={**record.settings, **set_to},
            )
            for record in records
            if record.training_set == "generated"
            for table, row in variant.places
        ]
        if not own:
            raise InputError(f"results: {path} has nothing trained on generated pairs alone. Use generated_share 1.")
        with replacing(path) as partial:
            write_records(partial, own)
        labelled += own
    return labelled


def settings_of(workflow: Workflow) -> dict[str, dict[str, Any]]:
    """What each node is set to, without what it is connected with: node id and class to inputs."""
    return {
        f"{name} {node['class_type']}": {k: v for k, v in node["inputs"].items() if not isinstance(v, list)}
        for name, node in workflow.items()
    }


class AblationRuns:
    """One ablation in one folder. A variant whose folder is complete is not run again."""

    def __init__(
        self,
        out: Path,
        protocol: str,
        tables: Sequence[int],
        workflow: Path | None,
        data: Path | None,
        category: str,
        seeds: int,
        assignments: Sequence[str],
    ) -> None:
        """See the command `ablate`.

        Raises:
            InputError: an unknown protocol or table, or the full protocol without workflow and data.
        """
        if protocol not in PROTOCOLS:
            raise InputError(f"protocol: unknown value '{protocol}'. Choose one of {', '.join(PROTOCOLS)}.")
        self.protocol = PROTOCOLS[protocol]
        self.variants = variants(self.protocol, tables)
        self.tables = sorted({table for variant in self.variants for table, _ in variant.places})
        if self.protocol is FULL and (workflow is None or data is None or not category):
            raise InputError(
                "protocol: full needs --workflow with a model such as Stable Diffusion 1.5, --data and --category. "
                "The quickstart has the demo prior, which is for the reduced protocol."
            )
        if self.protocol is REDUCED and data is not None:
            raise InputError("data: the reduced protocol renders its own images. Leave it out, or use full.")
        self.out, self.seeds, self.data, self.category = out, seeds, data, category
        changed = with_inputs(load_workflow(workflow or QUICKSTART), [parse_assignment(text) for text in assignments])
        for variant in self.variants:
            variant_workflow(changed, self.protocol, variant)  # a mistake should show before the first run
        self.base = changed

    def run(
        self,
        address: str | None = None,
        say: Callable[[str], None] = lambda text: None,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Run what is missing, write the tables anew, and return them as Markdown."""
        self.out.mkdir(parents=True, exist_ok=True)
        waiting = [(v, s) for s in range(self.seeds) for v in self.variants if not self._done(v, s)]
        if waiting:
            base = self._with_data()
            with server_at(address, self.out / "server.log") as (where, _):
                for number, (variant, seed) in enumerate(waiting, start=1):
                    say(f"{number} of {len(waiting)}: {variant.name}, seed {seed}, {self.protocol.name} protocol")
                    changed = variant_workflow(base, self.protocol, variant, seed)
                    run_workflow(changed, self._folder(variant, seed), where, on_progress=on_progress)
                    label_results(self._folder(variant, seed), variant, self.protocol, changed)
                    self._write_tables()  # so that an interrupted ablation has its tables
        return self._write_tables()

    def _with_data(self) -> Workflow:
        if self.data is None:
            folder = render_fewshot_set(self.out / IMAGES).parent
            return with_dataset(self.base, {"folder": folder.as_posix(), "category": CATEGORY})
        values = {"folder": self.data.absolute().as_posix(), "category": self.category, "split": "lowest third"}
        return with_dataset(self.base, values)

    def _folder(self, variant: Variant, seed: int) -> Path:
        return self.out / variant.name / f"seed_{seed}"

    def _done(self, variant: Variant, seed: int) -> bool:
        folder = self._folder(variant, seed)
        if not (folder / SUMMARY).is_file():
            return False
        label_results(folder, variant, self.protocol, variant_workflow(self.base, self.protocol, variant, seed))
        return True

    def _write_tables(self) -> str:
        built = build_tables(find_records([self.out]), self.tables)
        with new_folder(self.out / TABLES, replace=True) as draft:
            write_tables(draft, built)
        return to_markdown(built)
