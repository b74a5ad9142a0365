"""The file of results that a run writes: `results.json`, one record for each row and column that it measured.

`{"format": "anomalydiffusion results", "version": 1, "records": [...]}`. Numbers are fractions (0.814, not 81.4), one
for each seed, null where the metric is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...data.mvtec import AnomalyDataset
from ...errors import DatasetError, InputError
from ...files import write_json
from ...plain_json import read_json
from ...reading import files_below, is_file, is_folder
from ...synthetic.fewshot import is_rendered
from ..settings import FEW_REAL, GENERATED

FORMAT = "anomalydiffusion results"
VERSION = 1
FILE_NAME = "results.json"

REAL_AND_GENERATED = "few real + generated"
NORMAL_IMAGES = "normal images"
"""What detectors are trained on that know no defect: columns of the tables of detectors (5 and 12) alone."""
TRAINING_SETS = (GENERATED, FEW_REAL, REAL_AND_GENERATED, NORMAL_IMAGES)
RENDERED = "rendered"
"""`data` of images rendered by this project: never shown beside a published row of the same name."""
_PAPER_NAMES = {
    **{"anomalydiffusion": "Ours", "ours": "Ours", "cropandpaste": "Crop&Paste", "croppaste": "Crop&Paste"},
    **{"diffaug": "DiffAug", "differentiableaugmentation": "DiffAug", "cdc": "CDC", "sdgan": "SDGAN"},
    **{"defectgan": "Defect-GAN", "dfmgan": "DFMGAN", "draem": "DRAEM", "prn": "PRN", "kdad": "KDAD"},
    **{"cflow": "CFLOW", "cflowad": "CFLOW", "sspcab": "SSPCAB", "cfa": "CFA", "rd4ad": "RD4AD"},
    **{"reversedistillation": "RD4AD", "patchcore": "PatchCore", "padim": "PaDiM", "devnet": "DevNet", "dra": "DRA"},
}
"""Columns of the paper by their letters and digits in lower case, however a folder writes them."""


@dataclass(frozen=True)
class ResultRecord:
    """What was measured for one category and one way of training.

    Attributes:
        category: name of the object, as its folder.
        method: what made the pairs, named as in the paper ("Ours", "Crop&Paste", "DRAEM"), or the detector that saw
            normal images alone; empty for few real.
        training_set: one of `TRAINING_SETS`; the paper's columns are "generated".
        metrics: metric name -> a number for each seed.
        seeds: in the order of those numbers.
        budget: settings of the training that a reader must know.
        data: name of the data set's folder, or "rendered" for images of this project.
        reduced: whether the protocol is smaller than the paper's; shown wherever the numbers are.
        sets: which generated set each number belongs to; empty where all belong to one.
        runs: identity of the run behind each number; empty where it is not known.
        learned_from: marks of the images behind the numbers, see `data/provenance.py`.
        leaks: the test images among them, which every table says.
        table, row: of an ablation: the table (6 to 9) and the key of the variant's row. None and empty otherwise.
        source: the file it was read from.
        settings: everything that was set, by part: the detector, and of an ablation each node.
    """

    category: str
    method: str
    training_set: str
    metrics: Mapping[str, Sequence[float | None]]
    seeds: Sequence[int]
    budget: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    reduced: bool = False
    table: int | None = None
    row: str = ""
    source: str = ""
    sets: Sequence[str] = ()
    runs: Sequence[str] = ()
    learned_from: Mapping[str, Any] = field(default_factory=dict)
    leaks: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        if self.training_set not in TRAINING_SETS:
            raise InputError(f"training_set: '{self.training_set}'. Give one of {', '.join(TRAINING_SETS)}.")
        if not self.category:
            raise InputError("category: is empty. Give the name of the object.")
        if not self.method and self.training_set != FEW_REAL:
            raise InputError(f"method: is empty for the training set '{self.training_set}'. Name what made the pairs.")
        for what, own in (("sets", self.sets), ("runs", self.runs)):
            if own and len(own) != len(self.seeds):
                raise InputError(f"{what}: {len(own)} for {len(self.seeds)} seeds. Give one for each seed.")
        for name, values in self.metrics.items():
            if len(values) != len(self.seeds) or not self.seeds:
                raise InputError(f"{name}: {len(values)} numbers for {len(self.seeds)} seeds. Give one for each seed.")

    def _check_types(self) -> None:
        """Raise InputError that names the first entry of another type, as files that were edited have them."""
        texts = ("category", "method", "training_set", "data", "row", "source")
        kinds: dict[str, tuple[type, ...]] = {**dict.fromkeys(texts, (str,)), "reduced": (bool,)}
        kinds |= {
            "metrics": (Mapping,),
            "budget": (Mapping,),
            "settings": (Mapping,),
            "seeds": (list, tuple),
            "table": (int, type(None)),
        }
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name}: {str(getattr(self, name))[:40]!r} cannot be. Remove the record.")
        if not all(isinstance(seed, int) for seed in self.seeds):
            raise InputError(f"seeds: {str(self.seeds)[:40]} are not whole numbers. Remove the record.")
        for name, values in self.metrics.items():
            if not isinstance(values, (list, tuple)) or not all(_is_measured(value) for value in values):
                raise InputError(f"{name}: {str(values)[:40]} are not numbers. Remove the record.")

    @property
    def column(self) -> str:
        """Name of its column: the method alone where it was trained on its pairs alone."""
        if self.training_set == FEW_REAL:
            return FEW_REAL
        name = paper_name(self.method)
        return name if self.training_set in (GENERATED, NORMAL_IMAGES) else f"{FEW_REAL} + {name}"

    def budget_text(self) -> str:
        """The budget in one line."""
        return ", ".join(f"{key} {value}" for key, value in self.budget.items() if value is not None)


def paper_name(method: str) -> str:
    """The paper's column of a method, as "Defect-GAN" for a folder defect_gan; other names stay as they are."""
    return _PAPER_NAMES.get("".join(letter for letter in method.lower() if letter.isalnum()), method)


def to_record(
    dataset: AnomalyDataset,
    method: str,
    training_set: str,
    metrics: Mapping[str, Sequence[float | None]],
    seeds: Sequence[int],
    budget: Mapping[str, Any],
    reduced: bool,
) -> ResultRecord:
    """The record of what was measured on a data set; its split joins the budget. Few real pairs have no method."""
    return ResultRecord(
        category=dataset.object,
        method="" if training_set == FEW_REAL else method,
        training_set=training_set,
        metrics=metrics,
        seeds=list(seeds),
        budget={**budget, "split": dataset.split_rule, **_validation(dataset)},
        data=RENDERED if is_rendered(dataset.folder) else dataset.root.name,
        reduced=reduced,
    )


def _validation(dataset: AnomalyDataset) -> dict[str, Any]:
    """Of a validation split: a figure to choose by is never put together with one of the test set."""
    rate = dataset.split_options.get("validation_rate")
    return {"validation_rate": rate} if rate else {}


def write_records(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write a new file, whole or not at all.

    Raises:
        InputError: the file exists, or there is nothing to write.
    """
    if path.exists():
        raise InputError(f"path: {path} exists and is never overwritten. Choose another name.")
    if not records:
        raise InputError("records: none. There is nothing to write.")
    plain = []
    for record in records:
        entry = {key: value for key, value in asdict(record).items() if key != "source"}
        entry["metrics"] = {name: [_plain(value) for value in values] for name, values in record.metrics.items()}
        plain.append(entry)
    write_json(path, {"format": FORMAT, "version": VERSION, "records": plain})


def read_records(path: Path) -> list[ResultRecord]:
    """Read one file. Raises DatasetError that names it and what is wrong with it."""
    try:
        content = read_json(path, "results", advice="Remove it, or run the evaluation again.")
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            found = f"{content.get('format')} {content.get('version')}"
            raise DatasetError(
                f"{path}: holds {found[:60]!r}, not '{FORMAT} {VERSION}'. Give files that Evaluate nodes wrote."
            )
        return [ResultRecord(**{**entry, "source": path.as_posix()}) for entry in content["records"]]
    except DatasetError:
        raise
    except InputError as error:
        raise DatasetError(f"{path}: no results file ({error})") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path}: no results file ({error}). Remove it, or run the evaluation again.") from error


def find_records(places: Iterable[Path]) -> list[ResultRecord]:
    """Records of all files given, and of every `results.json` anywhere below the folders given, in order of path.

    Raises:
        DatasetError: a place that does not exist, or a file that cannot be read.
    """
    files: list[Path] = []
    for place in places:
        if is_folder(place):
            found = [path for path in files_below(place, "results", FILE_NAME) if path.name == FILE_NAME]
            files += [path for path in found if not any(p.startswith(".") for p in path.relative_to(place).parts)]
        elif is_file(place):
            files.append(place)
        else:
            raise DatasetError(f"results: {place} does not exist. Give a folder with results, or a {FILE_NAME}.")
    return [record for path in dict.fromkeys(files) for record in read_records(path)]


def _is_measured(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
