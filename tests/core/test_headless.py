"""The quickstart without ComfyUI, tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from PIL import Image
from tiny_quickstart import QUICKSTART, TINY

from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.server.headless import run_headless
from anomalydiffusion_core.server.workflow import load_workflow, parse_assignment, with_dataset, with_inputs
from anomalydiffusion_core.synthetic.fewshot import CATEGORY, render_fewshot_set

GOLDEN = Path(__file__).parents[1] / "host" / "golden"
pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], Path]:
    root = tmp_path_factory.mktemp("demo")
    render_fewshot_set(root / "few", size=128, train_pairs=6, test_pairs=2, normals=6, test_normals=2)
    tiny = with_inputs(load_workflow(QUICKSTART), [parse_assignment(text) for text in TINY])
    return with_dataset(tiny, {"folder": "few", "category": CATEGORY}), root


def test_the_whole_job_resumes_and_leaves_the_files_of_a_run(
    workflow: tuple[dict[str, dict[str, Any]], Path], tmp_path: Path
) -> None:
    tiny, root = workflow
    interrupted: list[str] = []

    class Interrupted(Quiet):
        def at(self, done: int, preview: Any = None) -> None:
            super().at(done)
            if done > 0.6 * self.total and not interrupted:
                interrupted.append("now")
                raise KeyboardInterrupt

    def bars(title: str) -> Any:
        return Interrupted if title == "generating pairs" else Quiet

    out = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        run_headless(tiny, root, out, bars)
    assert not out.exists()
    done = run_headless(tiny, root, out, bars)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"summary.json", "contact_sheet.png", "pairs/manifest.jsonl", "evaluation/evaluation.json"} <= files
    assert not any(".generation" in name for name in files)
    assert done.figures["pairs_exported"] == len(load_exported(out / "pairs")) == 4
    assert json.loads((out / "summary.json").read_text()) == done.figures
    assert done.figures["outside_max_abs_diff"] == 0 and done.results.table
    assert set(done.results.reports) == {"2", "3", "4", "8"}
    assert "loaded" in done.results.reports["3"][0]
    # What ComfyUI makes of the same workflow, recorded by the golden test of the host.
    recorded = golden.load(GOLDEN).arrays
    for kind, folder, most in (("image", "test", golden.IMAGE_TOLERANCE), ("mask", "ground_truth", 0)):
        names = [name for name in recorded if name.startswith(f"{kind}/{CATEGORY}/{folder}/")]
        assert len(names) == 4
        for name in names:
            with Image.open(out / "pairs" / name.partition("/")[2]) as image:
                pixels = np.asarray(image).astype(int)
            expected = recorded[name].astype(int) * (255 if kind == "mask" else 1)
            assert (np.abs(pixels - expected) > most).mean() <= golden.MASK_SHARE, name


def test_labels_and_other_label_files_are_those_of_the_export(
    workflow: tuple[dict[str, dict[str, Any]], Path], tmp_path: Path
) -> None:
    tiny, root = workflow
    wanted = [("9", "refine", "cut"), ("9", "also", "coco"), ("10", "runs", 1), ("10", "steps", 1)]
    run_headless(with_inputs(tiny, wanted), root, tmp_path / "out", lambda _: Quiet)
    pairs = load_exported(tmp_path / "out" / "pairs", every=True)
    assert pairs
    for pair in pairs:
        label, drawn = (np.asarray(Image.open(tmp_path / "out" / "pairs" / pair.record[key])) > 0
                        for key in ("mask", "drawn_mask"))  # fmt: skip
        assert pair.record["label"]["mode"] == "cut" and label.any() and not (label & ~drawn).any()
    assert list((tmp_path / "out" / "pairs").rglob("*coco*.json"))


def test_a_workflow_of_another_form_is_named(workflow: tuple[dict[str, dict[str, Any]], Path], tmp_path: Path) -> None:
    tiny, root = workflow
    lacking = {key: node for key, node in tiny.items() if key != "8"}
    with pytest.raises(InputError, match="AnomalyDiffusionBlendedAARKSampler"):
        run_headless(lacking, root, tmp_path / "out", lambda _: Quiet)
    with pytest.raises(InputError, match="methods"):
        run_headless(with_inputs(tiny, [("10", "methods", "x=y")]), root, tmp_path / "out", lambda _: Quiet)
    assert not (tmp_path / "out").exists()
