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
from ..evaluation.tables.build import build_tables
from ..evaluation.tables.files import write_tables
from ..evaluation.tables.records import FILE_NAME, ResultRecord, find_records, read_records, write_records
from ..evaluation.tables.text import to_markdown
from ..files import new_folder, replacing
from ..masks.refine import MODES
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

    options: of the trainings, in Training Options nodes, which are added where the workflow has none.
    """

    name: str
    inputs: ClassInputs
    rate: Callable[[int], Mapping[str, Any]]
    reduced: bool
    text: str = field(default="")
    options: Mapping[str, Any] = field(default_factory=dict)


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
FULL = Protocol(
    "full",
    {
        TRAINING: {
            **_TOKENS,
            "steps": 300000,
            "batch_size": 4,
            "learning_rate": 0.005,
            "encoder": "resnet50_fpn",
            "resolution": 256,
            "normalize_by_mask_area": False,
        },
        MASK_TRAINING: {"steps": 30000, "batch_size": 4, "learning_rate": 0.005, "resolution": 256},
        MASK_SAMPLER: {"count": 1000, "size": 256, "cfg": 5.0, "steps": 100, "most_components": 0},
        NORMALS: {"count": 1000, "size": 256},
        SAMPLER: {
            **_UNFILTERED,
            "steps": 200,
            "cfg": 1.0,
            "sampler_name": "ddim",
            "scheduler": "ddim_uniform",
            "denoise": 1.0,
            "reweighting": "paper",
            "crop": "off",
        },
        EXPORT_NODE: _UNFILTERED,
        EVALUATION_NODE: {
            **_ALONE,
            "size": 256,
            "width": 64,
            "steps": 12600,
            "batch_size": 8,
            "learning_rate": 0.0001,
        },
    },
    lambda percent: {"split": "lowest rate", "train_rate": percent, **_ONE_TEST_SET},
    False,
    "quantities of the paper and its code: 300000 steps, 1000 pairs of each type, augmentation renewed at each step, "
    "posterior samples, Eq. 7 with a softmax. Different: the base model and the token route are those of the workflow "
    "(paper: latent diffusion with a prompt), DDIM without the noise of eta 1, the detector of the last step "
    "(authors: best epoch on the test set)",
    options={"refresh_every": 1, "sample_latents": True},
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


def _set_options(workflow: Workflow, options: Mapping[str, Any]) -> None:
    """Set options of all trainings of embeddings; a training without a Training Options node gets one."""
    for name in (TRAINING, MASK_TRAINING):
        for node in nodes_of_class(workflow, name):
            own = workflow[node]["inputs"].get("options")
            if own is None:
                added = f"{node}_options"
                choices = {key: value for key, value in asdict(TrainingChoices()).items() if key != "loop"}
                inputs = {**choices, **asdict(TrainingChoices().loop)}
                workflow[added] = {"class_type": TRAINING_OPTIONS, "inputs": inputs}
                own = workflow[node]["inputs"]["options"] = [added, 0]
            workflow[own[0]]["inputs"].update(options)


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


def label_results(folder: Path, variant: Variant, protocol: Protocol) -> list[ResultRecord]:
    """Turn the results of a finished run, anywhere below its own folder, into rows of the ablation tables.

    Only what was trained on generated pairs alone counts, as in the paper. A detector that was trained on pairs of an
    ablated model is not "Ours", so the file is replaced. A folder that is labelled already stays as it is.
    """
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
                    label_results(self._folder(variant, seed), variant, self.protocol)
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
        label_results(folder, variant, self.protocol)
        return True

    def _write_tables(self) -> str:
        built = build_tables(find_records([self.out]), self.tables)
        with new_folder(self.out / TABLES, replace=True) as draft:
            write_tables(draft, built)
        return to_markdown(built)
