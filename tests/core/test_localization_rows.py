"""Tables of many training sets and methods: the right pairs in each row, and no run made twice."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.data.images import resize_image
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.evaluation.localization.comparison import ComparisonStep, compare_rows
from anomalydiffusion_core.evaluation.localization.network import DiscriminativeSubNetwork, build_network
from anomalydiffusion_core.evaluation.localization.rows import methods_of, named_values, rows_of
from anomalydiffusion_core.evaluation.localization.runs import RunStore, SharedData, split_places, split_validation
from anomalydiffusion_core.evaluation.localization.sources import (
    NormalSource,
    PairSource,
    held_out_tensors,
    pair_tensors,
)
from anomalydiffusion_core.evaluation.localization.testing import LocalizationResult, score_tests
from anomalydiffusion_core.evaluation.localization.training import LocalizerTraining, Pairs
from anomalydiffusion_core.evaluation.settings import AUTHORS, VALIDATION, LocalizerSettings

pytestmark = pytest.mark.core

TINY = LocalizerSettings(size=32, width=2, steps=3, batch_size=4, check_every=2)


def _squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, masks = torch.rand(count, 3, 32, 32, generator=generator), torch.zeros(count, 1, 32, 32)
    for place, (y, x) in enumerate(torch.randint(0, 24, (count, 2), generator=generator).tolist()):
        masks[place, :, y : y + 8, x : x + 8] = 1
    return images, masks


REAL, OURS, OTHER = {"a/b": _squares(3, 1)}, {"a/b": _squares(5, 2)}, {"a/c": _squares(4, 3)}
NORMALS = _squares(4, 4)[0]
TEST = (_squares(6, 5)[0], torch.cat([_squares(4, 5)[1], torch.zeros(2, 1, 32, 32)]))
NORMAL_SOURCE = NormalSource("normals", len(NORMALS), lambda size: resize_image(NORMALS, size))
DATA = SharedData(pair_tensors(REAL), NORMAL_SOURCE, held_out_tensors(*TEST, ["a/b"] * 4))


def _trained(real: Pairs, settings: LocalizerSettings, generated: Pairs | None = None) -> DiscriminativeSubNetwork:
    return LocalizerTraining(real, NORMALS, settings, generated).run()


def _measured(network: DiscriminativeSubNetwork, images: Tensor, masks: Tensor) -> tuple[LocalizationResult, Tensor]:
    tests = held_out_tensors(images, masks)
    scored = score_tests(network, tests, 32)
    return scored.measure(), torch.from_numpy(np.stack(scored.maps))


def _unread(pairs: PairSource) -> PairSource:
    def refuse(size: int) -> dict[str, tuple[Tensor, Tensor]]:
        raise AssertionError("was read although the run is known")

    return replace(pairs, read=refuse)


def test_every_row_trains_on_what_its_name_says(tmp_path: Path) -> None:
    torch.save(build_network(2, torch.Generator().manual_seed(9)).state_dict(), tmp_path / "net.pckl")
    methods = {"ours": pair_tensors(OURS), "Crop&Paste": pair_tensors(OTHER)}
    rows = rows_of(("none", "few real", "generated", "both"), methods, {"authors": tmp_path / "net.pckl"})
    steps: list[ComparisonStep] = []
    compared = compare_rows(rows, DATA, TINY, (3,), RunStore(tmp_path), (0, 5), steps.append)
    expected = {
        "without": ("few real", _trained(REAL, replace(TINY, seed=3))),
        "generated": ("ours", _trained({}, replace(TINY, seed=3), OURS)),
        "with": ("few real + ours", _trained(REAL, replace(TINY, seed=3), OURS)),
        "Crop&Paste": ("Crop&Paste", _trained({}, replace(TINY, seed=3), OTHER)),
        "few real + Crop&Paste": (
            "few real + Crop&Paste",
            _trained(REAL, replace(TINY, seed=3), OTHER),
        ),
        "authors": ("authors", build_network(2, torch.Generator().manual_seed(9)).eval()),
    }
    assert [result.row.key for result in compared.rows] == ["none", *expected]
    for key, (method, network) in expected.items():
        result, maps = _measured(network, *TEST)
        (run,) = compared[key].runs
        assert run.result == result, key
        assert compared[key].row.method == method
        assert torch.equal(run.maps, maps[[0, 5]])
    assert (steps[-1].done, steps[-1].total, len(steps)) == (18, 18, 18)
    assert steps[0].step.network.base_width == 2
    records = {record["label"]: record for record in compared.row_records("part")}
    ours = records["few real + generated pairs"]
    assert (ours["kind"], ours["object"], ours["method"], ours["seeds"]) == (
        "localization", "part", "few real + ours", [3],
    )  # fmt: skip
    assert ours["metrics"]["pixel_ap"] == compared["with"].mean("pixel_ap")
    assert (ours["budget"]["steps"], ours["budget"]["size"], ours["selection"]) == (3, 32, "last step")
    given = records["authors (weights given)"]
    assert (given["seeds"], given["selection"], "steps" in given["budget"]) == ([], "weights given", False)


def test_a_finished_run_is_never_made_again(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    rows = rows_of(("few real", "both"), {"ours": pair_tensors(OURS)})
    first = compare_rows(rows, DATA, TINY, (0, 1), store, (1, 2))
    assert first.reused == 0 and len(list(tmp_path.glob("runs/*/run.json"))) == 4
    unread = SharedData(
        _unread(DATA.few_real),
        replace(DATA.normals, read=lambda size: pytest.fail("was read")),
        DATA.tests,
    )
    steps: list[ComparisonStep] = []
    again = compare_rows(
        rows_of(("few real", "both"), {"ours": _unread(pair_tensors(OURS))}),
        unread, TINY, (0, 1), store, (1, 2), steps.append,
    )  # fmt: skip
    assert not steps and again.reused == 4
    assert again.markdown() == first.markdown() and again.csv() == first.csv()
    for result, before in zip(again.rows, first.rows, strict=True):
        for run, old in zip(result.runs, before.runs, strict=True):
            assert run.curves == old.curves and run.losses == old.losses
            assert torch.equal(run.maps, old.maps)
    # what a row does not depend on does not make it anew; what it depends on does
    for change, made in (
        ({"generated_share": 0.25}, 2),
        ({"check_every": 5, "validation_share": 0.5}, 0),
        ({"flips": False}, 4),
    ):
        steps.clear()
        compare_rows(rows, DATA, replace(TINY, **change), (0, 1), store, (1, 2), steps.append)
        assert len(steps) == made * TINY.steps, change
    steps.clear()
    compare_rows(rows_of(("few real",), {}), DATA, TINY, (0, 1, 2), store, (1, 2), steps.append)
    assert [step.seed for step in steps] == [2] * 3
    marker = next(tmp_path.glob("runs/*/run.json"))
    for path in tmp_path.glob("runs/*/run.json"):
        path.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        compare_rows(rows, DATA, TINY, (0, 1), store, (1, 2))
    assert marker.is_file()


def test_cancelled_and_called_again_it_goes_on(tmp_path: Path) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(step: ComparisonStep) -> None:
        if step.done == 5:
            raise Cancelled

    rows = rows_of(("few real",), {})
    expected = compare_rows(rows, DATA, TINY, (0, 1), RunStore(tmp_path / "straight"))
    store = RunStore(tmp_path / "runs")
    with pytest.raises(Cancelled):
        compare_rows(rows, DATA, TINY, (0, 1), store, on_step=cancel)
    assert len(list(store.root.glob("*/state.pt"))) == 1 == len(list(store.root.glob("*/run.json")))
    steps: list[ComparisonStep] = []
    again = compare_rows(rows, DATA, TINY, (0, 1), store, on_step=steps.append)
    assert [(step.seed, step.done, step.total) for step in steps] == [(1, 3, 3)]
    results = [[run.result for run in compared["without"].runs] for compared in (again, expected)]
    assert results[0] == results[1]
    assert not list(store.root.glob("*/state.pt")) and not list(tmp_path.rglob("*.partial"))


def test_validation_rates_with_held_back_real_pairs_and_the_authors_with_the_test_set(tmp_path: Path) -> None:
    settings = replace(TINY, selection=VALIDATION)
    rows = rows_of(("few real", "generated"), {"ours": pair_tensors(OURS)})
    store = RunStore(tmp_path)
    compared = compare_rows(rows, DATA, settings, (4,), store, range(6))
    training, held = split_validation(REAL, 1 / 3, 4)
    kept, aside = split_places(4, 1 / 3, 4)
    images = torch.cat([held["a/b"][0], NORMALS[aside]])
    masks = torch.cat([held["a/b"][1], torch.zeros(len(aside), 1, 32, 32)])

    def rate(network, images: Tensor = images, masks: Tensor = masks) -> float:  # type: ignore[no-untyped-def]
        result, _ = _measured(network, images, masks)
        values = [result.image_auroc, result.pixel_auroc, result.pixel_ap, result.pixel_pro]
        return float(np.sum(values))

    for key, real, extra in (("without", training, None), ("generated", {}, OURS)):
        training = LocalizerTraining(real, NORMALS[kept], replace(settings, seed=4), extra)
        network = training.run(choose=rate)
        assert torch.equal(compared[key].runs[0].maps, _measured(network, *TEST)[1])
    assert "chosen by a validation split of 33%" in compared.markdown()
    settings = replace(TINY, selection=AUTHORS)
    chosen = compare_rows(rows_of(("few real",), {}), DATA, settings, (4,), store, range(6))
    training = LocalizerTraining(REAL, NORMALS, replace(settings, seed=4))
    network = training.run(choose=lambda net: rate(net, *TEST))
    assert torch.equal(chosen["without"].runs[0].maps, _measured(network, *TEST)[1])
    assert chosen.markdown().count(AUTHORS) == 2
    assert chosen.row_records("part")[0]["selection"] == AUTHORS
    assert all(AUTHORS in line for line in chosen.csv().splitlines()[1:])


def test_csv_holds_every_run_with_mean_and_spread(tmp_path: Path) -> None:
    compared = compare_rows(rows_of(("few real",), {}), DATA, TINY, (0, 1), RunStore(tmp_path))
    lines = list(csv.DictReader(io.StringIO(compared.csv())))
    assert [line["seed"] for line in lines] == ["0", "1", "mean", "spread"]
    values = [float(line["pixel_ap"]) for line in lines]
    assert values[2] == pytest.approx(np.mean(values[:2]), abs=1e-6)
    assert values[3] == pytest.approx(np.std(values[:2], ddof=1), abs=1e-6)
    assert json.loads(json.dumps(compared.as_dict(), allow_nan=False))["sets"]["without"]["runs"][0]["step"] == 3


def test_names_are_checked(tmp_path: Path) -> None:
    ours = {"ours": pair_tensors(OURS)}
    for sets, methods, weights, message in (
        (("few", "both"), ours, {}, "'few, both'"),
        (("both", "both"), ours, {}, "at most once"),
        (("both",), {}, {}, "pairs: none"),
        (("few real",), {"with": ours["ours"]}, {}, "'with' is taken"),
        (("few real",), ours, {"ours": Path("x")}, "'ours' is taken"),
        ((), ours, {}, "training_sets: empty"),
        (("few real",), {"DRAEM": pair_tensors(OTHER)}, {}, "nothing is trained on the pairs of 'DRAEM'"),
        (("generated", "both"), {"a": ours["ours"], "few real + a": ours["ours"]}, {}, "called 'few real [+] a'"),
    ):
        with pytest.raises(InputError, match=message):
            rows_of(sets, methods, weights)
    assert named_values(" A = x/y \n\nB=c=d\n", "methods") == {"A": "x/y", "B": "c=d"}
    for text, message in (("A", "NAME=FOLDER"), ("A=", "NAME=FOLDER"), ("A=b\nA=c", "'A' is given twice")):
        with pytest.raises(InputError, match=message):
            named_values(text, "methods")
    with pytest.raises(InputError, match="methods: the name 'ours' is reserved"):
        methods_of([ours["ours"]], "ours=folder", lambda text, name: Path(text), "methods")
    with pytest.raises(InputError, match="few real pairs: none"):
        compare_rows(
            rows_of(("few real",), {}), replace(DATA, few_real=pair_tensors({})), TINY, (0,), RunStore(tmp_path)
        )
    with pytest.raises(InputError, match="seeds"):
        compare_rows(rows_of(("few real",), {}), DATA, TINY, (), RunStore(tmp_path))


def test_few_real_and_ours_is_the_row_of_both_for_ours_alone() -> None:
    methods = {"DRAEM": pair_tensors(OTHER), "ours": pair_tensors(OURS)}
    rows = rows_of(("few real", "generated", "few real + ours"), methods)
    assert [row.key for row in rows] == ["without", "DRAEM", "generated", "with"]
    assert rows[-1] == rows_of(("both",), methods)[-1]
    with pytest.raises(InputError, match="none under test"):
        rows_of(("few real + ours",), {"DRAEM": pair_tensors(OTHER)})
