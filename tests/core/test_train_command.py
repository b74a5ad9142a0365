"""The command `train`: from a model folder and a data set to a numbered bundle, without ComfyUI."""

from __future__ import annotations

import inspect
import json
import signal
from dataclasses import fields, replace
from pathlib import Path

import diffusers_folder as folders
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from anomalydiffusion_core.backends.diffusers import load_diffusers
from anomalydiffusion_core.backends.ldm import LdmDenoiser, load_ldm
from anomalydiffusion_core.backends.ldm_files import EPSILON
from anomalydiffusion_core.backends.models import open_model
from anomalydiffusion_core.bundles.bundle import load_bundle
from anomalydiffusion_core.cli import train as train_command
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.conditioning.template import DEFAULT_TEMPLATE
from anomalydiffusion_core.data.mvtec import load_dataset
from anomalydiffusion_core.data.splits import SplitSettings
from anomalydiffusion_core.data.training import training_pairs
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.training.headless import TrainingJob, train
from anomalydiffusion_core.training.inversion import InversionSettings, train_anomaly_embedding
from anomalydiffusion_core.training.settings import LoopOptions, StepReport, StopTraining

pytestmark = pytest.mark.core
SMALL = ["--steps", "3", "--resolution", "64", "--augmented-copies", "1", "--split", "first n", "--train-count", "2"]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = LdmDenoiser.random(0, context_dim=32)
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    store(path, tiny.autoencoder, tiny.unet, tiny.words, {}, EPSILON)
    return path


@pytest.fixture(scope="module")
def model(prior: Path) -> Path:
    return folders.write_from_ldm(prior.parent / "model", prior)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def save(pixels: np.ndarray, name: str) -> None:
        path = root / "part" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for number in range(3):
        picture = rng.integers(100, 140, (64, 64, 3), dtype=np.uint8)
        save(picture, f"train/good/{number}.png")
        for defect, top in (("dot", 8), ("bar", 30)):
            mask = np.zeros((64, 64), np.uint8)
            mask[top : top + 12, 10 + number : 40] = 255
            save(np.where(mask[..., None] > 0, 30, picture).astype(np.uint8), f"test/{defect}/{number}.png")
            save(mask, f"ground_truth/{defect}/{number}_mask.png")
    return root


def invoke(model: Path, data: Path, out: Path, *more: str, category: str = "part") -> tuple[int, str]:
    arguments = ["train", "--model", str(model), "--data", str(data), "--category", category, "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, *SMALL, *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_every_setting_of_the_training_is_an_option_with_the_same_default() -> None:
    options = {name: option.default for name, option in inspect.signature(train_command.train).parameters.items()}
    settings = [one for one in fields(InversionSettings) if one.name != "options"]
    for setting in (*settings, *fields(LoopOptions), *(one for one in fields(TrainingJob) if one.name != "template")):
        assert options[setting.name] == setting.default, setting.name
    assert options["template"] == DEFAULT_TEMPLATE


def test_bundle_curve_and_summary_are_those_of_the_training_and_nothing_is_overwritten(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    for number in (1, 2):
        code, text = invoke(model, data, out, "--seed", "5")
        assert code == 0, text
        assert f"anomaly_embedding_0000{number}.safetensors: 3 of 3 steps" in text.replace("\n", "")
    names = [f"anomaly_embedding_0000{n}.{kind}" for n in (1, 2) for kind in ("json", "png", "safetensors")]
    assert sorted(path.name for path in out.iterdir()) == names
    first, second = (out / f"anomaly_embedding_0000{n}.safetensors" for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()

    dataset = load_dataset(data, "part", SplitSettings("first n", 2))
    pairs = {kind.key: training_pairs(kind.train, 64) for kind in dataset.types}
    settings = InversionSettings(steps=3, resolution=64, augmented_copies=1, seed=5)
    expected = train_anomaly_embedding(load_diffusers(model), pairs, settings)
    bundle = load_bundle(first)
    assert bundle.types == ("part/bar", "part/dot")
    assert all(torch.equal(bundle.tokens[key], rows) for key, rows in expected.bundle.tokens.items())
    assert bundle.metadata["losses"] == [round(loss, 6) for loss in expected.losses]
    assert bundle.metadata["split"] == "first n" and len(bundle.metadata["training_files"]) == 8
    assert bundle.metadata["split_names"]["part/dot"] == {"train": ["0", "1"], "test": ["2"]}
    assert "memory about" in text
    summary = json.loads((out / "anomaly_embedding_00001.json").read_text())
    assert (summary["steps"], summary["steps_wanted"]) == (3, 3)
    assert summary["loss_first_tenth"] == bundle.metadata["losses"][0]
    with Image.open(out / "anomaly_embedding_00001.png") as curve:
        assert curve.size == (640, 400)


def test_one_defect_of_a_file_like_the_demo_prior_from_words_it_knows(prior: Path, data: Path, tmp_path: Path) -> None:
    code, text = invoke(prior, data, tmp_path, "--defects", "dot", "--initial", "leather, dent", "--name", "dots")
    assert code == 0, text
    code, refused = invoke(prior, data, tmp_path, "--clip")
    assert code == 1 and "error: clip: tiny.safetensors has no text encoder" in refused
    bundle = load_bundle(tmp_path / "dots_00001.safetensors")
    assert bundle.types == ("part/dot",) and bundle.metadata["initial"] == "leather, dent"
    words = load_ldm(prior).caption_context("leather, dent")[0]
    rows = bundle.tokens["part/dot"]
    near = words[torch.arange(8) % len(words)]
    assert (rows - near).square().mean() < 0.1 * near.square().mean()


def test_a_stopped_training_keeps_what_was_learned_and_goes_on_to_the_same_bundle(
    model: Path, data: Path, tmp_path: Path
) -> None:
    steps: list[int] = []

    def stop(report: StepReport) -> None:
        steps.append(report.step)
        if report.step == 2:
            raise StopTraining

    dataset = load_dataset(data, "part", SplitSettings("first n", 2))
    settings = InversionSettings(steps=5, resolution=64, augmented_copies=1)
    opened = open_model(model, "cpu")
    straight = train(opened, dataset, settings, tmp_path / "straight")
    out = tmp_path / "out"
    first = train(opened, dataset, settings, out, on_step=stop)
    assert (first.figures["steps"], first.figures["stopped_at_step"]) == (2, 2)
    assert load_bundle(first.bundle).metadata["stopped_at_step"] == 2
    assert len(list(out.glob(".*.state"))) == 1
    other = train(opened, dataset, settings, out, TrainingJob("other"), on_step=stop)
    assert other.figures["steps"] == 2 and other.resumed == ""
    second = train(opened, dataset, settings, out, on_step=lambda report: steps.append(report.step))
    assert steps[-3:] == [3, 4, 5] and second.resumed == "resumed after step 2"
    assert second.bundle.read_bytes() == straight.bundle.read_bytes()
    assert not list(out.glob(".anomaly_embedding*"))
    again = train(opened, dataset, settings, out, TrainingJob("other", resume=False, keep_state=True))
    assert again.resumed == ""
    longer = train(opened, dataset, replace(settings, steps=7), out, TrainingJob("other"))
    assert longer.resumed == "resumed after step 5" and longer.figures["steps"] == 7


def test_the_first_signal_lets_the_step_end_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with train_command._Bars() as bars, train_command._stop_on_signal(bars):
        bars.on_step(StepReport(1, 9, 0.5))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StopTraining):
            bars.on_step(StepReport(2, 9, 0.5))
        with pytest.raises(KeyboardInterrupt):
            bars.on_prepare(1, 2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(model: Path, data: Path, tmp_path: Path) -> None:
    code, text = invoke(model, data, tmp_path, "--learning-rate", "1e30")
    assert code == 1 and "not finite at step 2" in text and "anomaly_embedding_00001.safetensors" in text
    bundle = load_bundle(tmp_path / "anomaly_embedding_00001.safetensors")
    assert bundle.metadata["stopped_at_step"] == 2
    assert all(bool(rows.isfinite().all()) for rows in bundle.tokens.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "nowhere"], "error: model: nowhere does not exist"),
        (["--category", "nothing"], "error: category:"),
        (["--defects", "rust"], "error: defects: rust"),
        (["--steps", "0"], "error: steps: 0"),
        (["--dtype", "int8"], "dtype: unknown value 'int8'"),
        (["--device", "nonsense"], "error: device: 'nonsense'"),
        (["--name", "a/b"], "error: name: 'a/b'"),
        (["--initial", "a scratch"], "lacks text_encoder/config.json"),
        (["--clip"], "lacks text_encoder/config.json"),
        (["--dtype", "float16", "--device", "cpu"], "error: dtype: the CPU cannot train in float16"),
        (["--balance", "moon"], "error: balance: there is no rule 'moon'"),
        (["--encoder-weights", "nowhere.pth"], "error: encoder weights: nowhere.pth cannot be read"),
        (["--split", "list", "--train-list", "dot/9"], "- train_list: unknown pair dot/9"),
        (["--save-every", "0"], "error: save every: 0"),
    ],
)
def test_input_that_cannot_be_used_is_named_and_nothing_is_written(
    model: Path, data: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    code, text = invoke(model, data, tmp_path / "out", *more)
    assert code == 1 and message in text
    assert not list(tmp_path.rglob("*.*"))


def test_a_folder_that_is_a_file_fails_before_the_training(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    code, text = invoke(model, data, tmp_path / "out")
    assert code == 1 and "error: out:" in text and (tmp_path / "out").read_text() == "kept"
