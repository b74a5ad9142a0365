"""What the tiny quickstart left behind, in a form that can be stored and compared with a later run.

Processors differ in the last bits of a sum, so numbers are compared within a tolerance and not bit by bit.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

Array = NDArray[Any]

BUNDLE_NODES = ("3", "4")
PAIRS_NODE = "9"
EVALUATION_NODE = "10"
# Adam divides a gradient by its own size, so one that is 0 but for rounding still moves its weight by the whole rate,
# either way. At the rate of the quickstart the figures of pixels differ by up to 0.06 and those of images by 0.125
# between instruction sets; at this rate by up to 0.0002.
STEADY = (("10", "learning_rate", 1e-6), ("10", "steps", 10))

# Of a larger tensor so many values are kept, evenly spaced, and the mean of all.
VALUES_KEPT = 1024
BUNDLE_TOLERANCE = 1e-4
# Of the pixels of a mask: at its threshold a pixel may fall on the other side.
MASK_SHARE = 0.001
# In grey levels, 0 to 255.
IMAGE_TOLERANCE = 1
# Numbers under other names must be equal. Effects are grey levels; the measures of a detector have names that begin
# with pixel_ or image_ and have one tolerance.
TOLERANCES = {
    "mean": BUNDLE_TOLERANCE,
    "mean_abs": BUNDLE_TOLERANCE,
    "losses": BUNDLE_TOLERANCE,
    "effect_score": 0.01,
    "control_score": 0.01,
    "fill_share": 0.001,
}
MEASURES = ("pixel_", "image_")
MEASURE_TOLERANCE = 0.001


@dataclass(frozen=True)
class Golden:
    """The results of one run.

    arrays: values of the trained tensors, masks (bool) and images (uint8), under bundle/, mask/ and image/.
    values: all the rest, as JSON: "bundles", "records" of the pairs, "figures" of the detector of the steady run,
    "trained_figures" of the other, and the "processor", where alone these can be compared.
    """

    arrays: dict[str, Array]
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, Array]:
        """The arrays under ``name``/."""
        return {key: array for key, array in self.arrays.items() if key.startswith(f"{name}/")}


Outputs = Mapping[str, Mapping[str, Any]]


def collect(outputs: Outputs, steady: Outputs, models: Path, output: Path) -> Golden:
    """Read the results of a finished quickstart.

    outputs: what its nodes showed, by node id. steady: the same of a run with the values of STEADY. models, output:
    those folders of the server.
    """
    arrays: dict[str, Array] = {}
    bundles = {}
    for node in BUNDLE_NODES:
        described, tensors = _read_bundle(models / "anomalydiffusion" / outputs[node]["bundle_file"][0])
        bundles[described["kind"]] = described
        arrays |= tensors
    folder = output / outputs[PAIRS_NODE]["pairs_folder"][0]
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        arrays[f"mask/{record['mask']}"] = _pixels(folder / record["mask"]) > 0
        # Hashes change with the last bit, which differs from machine to machine; the images are compared themselves.
        record.pop("sha256")
        record.pop("version")
        for key in ("image", "normal"):
            arrays[f"image/{record[key]}"] = _pixels(folder / record[key])
    values: dict[str, Any] = {"bundles": bundles, "records": records, "processor": processor()}
    for key, shown in (("figures", steady), ("trained_figures", outputs)):
        path = output / shown[EVALUATION_NODE]["evaluation_folder"][0] / "evaluation.json"
        values[key] = _figures(json.loads(path.read_text(encoding="utf-8")))
    return Golden(arrays, values)


def processor() -> dict[str, str]:
    """What decides on the last bits: the processor, with what it can compute, and the version of torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if cpuinfo.is_file() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    described = {key: told.get(key, "") for key in ("vendor_id", "cpu family", "model", "flags")}
    return {**described, "machine": platform.machine(), "torch": version("torch")}


def save(golden: Golden, folder: Path) -> None:
    """Write quickstart.npz and quickstart.json into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "quickstart.npz", **golden.arrays)  # type: ignore[arg-type]
    text = json.dumps(golden.values, indent=1, sort_keys=True)
    (folder / "quickstart.json").write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> Golden:
    """Read what ``save`` wrote."""
    with np.load(folder / "quickstart.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return Golden(arrays, json.loads((folder / "quickstart.json").read_text(encoding="utf-8")))


def bundle_differences(recorded: Golden, found: Golden) -> list[str]:
    """A line for each tensor and each recorded setting of the bundles that is not as recorded; the same below."""
    said = _value_differences(recorded.values["bundles"], found.values["bundles"], "bundles")
    one, other = recorded.part("bundle"), found.part("bundle")
    for key in _shared(one, other, said):
        largest = float(np.abs(one[key] - other[key]).max())
        if not largest <= BUNDLE_TOLERANCE:
            said.append(f"{key}: differs by up to {largest:.2g}, {BUNDLE_TOLERANCE} allowed")
    return said


def mask_differences(recorded: Golden, found: Golden) -> list[str]:
    said: list[str] = []
    one, other = recorded.part("mask"), found.part("mask")
    for key in _shared(one, other, said):
        changed = int((one[key] != other[key]).sum())
        if changed > MASK_SHARE * one[key].size:
            said.append(f"{key}: {changed} of {one[key].size} pixels differ, a share of {MASK_SHARE} allowed")
    return said


def image_differences(recorded: Golden, found: Golden) -> list[str]:
    """Images count where both masks agree: a pixel that is in one mask only was made in one run only."""
    said: list[str] = []
    one, other = recorded.part("image"), found.part("image")
    shared = _shared(one, other, said)
    for record in recorded.values["records"]:
        mask = f"mask/{record['mask']}"
        if mask not in found.arrays:
            said.append(f"{mask}: missing")
            continue
        agree = recorded.arrays[mask] == found.arrays[mask]
        for key in (f"image/{record['image']}", f"image/{record['normal']}"):
            if key in shared:
                levels = np.abs(one[key].astype(int) - other[key].astype(int))[agree]
                wrong = int((levels > IMAGE_TOLERANCE).sum())
                if wrong:
                    said.append(f"{key}: {wrong} of {levels.size} values differ by up to {levels.max()} grey levels")
    return said


def record_differences(recorded: Golden, found: Golden) -> list[str]:
    return _value_differences(recorded.values["records"], found.values["records"], "records")


def figure_differences(recorded: Golden, found: Golden) -> list[str]:
    return _value_differences(recorded.values["figures"], found.values["figures"], "figures")


def trained_figure_differences(recorded: Golden, found: Golden) -> list[str]:
    """Figures after steps at the quickstart's own rate; they hold on the recorded processor only."""
    return _value_differences(recorded.values["trained_figures"], found.values["trained_figures"], "trained_figures")


def _read_bundle(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a bundle says of itself and of its tensors, and values of each."""
    arrays: dict[str, Array] = {}
    tensors = {}
    with safe_open(str(path), framework="numpy") as stored:
        metadata = json.loads(stored.metadata()["anomalydiffusion"])
        for name in stored.keys():
            tensor = stored.get_tensor(name)
            flat = tensor.ravel()
            kept = np.linspace(0, flat.size - 1, min(flat.size, VALUES_KEPT)).round().astype(int)
            arrays[f"bundle/{metadata['kind']}/{name}"] = flat[kept]
            mean, mean_abs = float(flat.mean(dtype=np.float64)), float(np.abs(flat).mean(dtype=np.float64))
            tensors[name] = {"shape": list(tensor.shape), "mean": round(mean, 7), "mean_abs": round(mean_abs, 7)}
    # The rest depends on the bytes of the rendered files, and those on the version of the PNG library.
    kept_keys = ("kind", "format_version", "types", "width", "base_fingerprint", "token_route", "settings", "losses")
    return {**{key: metadata[key] for key in (*kept_keys, "split_names")}, "tensors": tensors}, arrays


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Counts and measures of an evaluation.json, without its times."""

    def measured(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key.startswith(MEASURES) or key in ("seed", "step")}

    figures = {key: evaluation[key] for key in ("object", "test_defects", "test_normals", "generated_pairs", "seeds")}
    for arm in ("without", "with"):
        part = evaluation[arm]
        figures[arm] = {key: measured(part[key]) for key in ("mean", "spread")}
        figures[arm]["runs"] = [measured(run) for run in part["runs"]]
    figures["rows"] = [
        {"method": row["method"], "label": row["label"], "metrics": measured(row["metrics"])}
        for row in evaluation["rows"]
    ]
    return figures


def _pixels(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


def _shared(recorded: Mapping[str, Array], found: Mapping[str, Array], said: list[str]) -> list[str]:
    """Keys of both with arrays of one shape; what only one of them has is added to ``said``."""
    said += [f"{key}: missing" for key in sorted(set(recorded) - set(found))]
    said += [f"{key}: not recorded" for key in sorted(set(found) - set(recorded))]
    both = sorted(set(recorded) & set(found))
    shapes = {key: (recorded[key].shape, found[key].shape) for key in both}
    said += [f"{key}: shape {one} recorded, {other} found" for key, (one, other) in shapes.items() if one != other]
    return [key for key, (one, other) in shapes.items() if one == other]


def _value_differences(recorded: Any, found: Any, path: str, key: str = "") -> list[str]:
    """Compare JSON values. A mapping may have gained keys since; whatever was recorded must be as it was."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        said = [f"{path}.{name}: missing" for name in recorded if name not in found]
        for name in recorded.keys() & found.keys():
            said += _value_differences(recorded[name], found[name], f"{path}.{name}", name)
        return sorted(said)
    if isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        pairs = enumerate(zip(recorded, found, strict=True))
        return [line for i, (a, b) in pairs for line in _value_differences(a, b, f"{path}[{i}]", key)]
    allowed = MEASURE_TOLERANCE if key.startswith(MEASURES) else TOLERANCES.get(key, 0)
    if allowed and _is_number(recorded) and _is_number(found):
        same = abs(recorded - found) <= allowed
    else:
        same = recorded == found
    return [] if same else [f"{path}: {recorded!r} recorded, {found!r} found, {allowed} allowed"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
