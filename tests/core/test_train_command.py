"""The command `train`: from a model folder and a data set to a numbered bundle, without ComfyUI."""

from __future__ import annotations

import inspect
import json
import signal
from dataclasses import replace
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
from anomalydiffusion_core.data.training import training_views
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.options import declared
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.store import FolderStore
from anomalydiffusion_core.training.inversion import AnomalyTrainer, InversionSettings
from anomalydiffusion_core.training.lora import Lora, load_lora, with_lora
from anomalydiffusion_core.training.plans import Base, Start, anomaly_plan
from anomalydiffusion_core.training.session import Trained, run_training
from anomalydiffusion_core.training.settings import StopTraining, TrainingChoices

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
        image = rng.integers(100, 140, (64, 64, 3), dtype=np.uint8)
        save(image, f"train/good/{number}.png")
        for defect, top in (("dot", 8), ("bar", 30)):
            mask = np.zeros((64, 64), np.uint8)
            mask[top : top + 12, 10 + number : 40] = 255
            save(np.where(mask[..., None] > 0, 30, image).astype(np.uint8), f"test/{defect}/{number}.png")
            save(mask, f"ground_truth/{defect}/{number}_mask.png")
    return root


def invoke(model: Path, data: Path, out: Path, *more: str, category: str = "part") -> tuple[int, str]:
    arguments = ["train", "--model", str(model), "--data", str(data), "--category", category, "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, *SMALL, *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_every_setting_of_the_training_is_an_option_with_the_same_default() -> None:
    options = {name: option.default for name, option in inspect.signature(train_command.train).parameters.items()}
    rest = ("preview_every", "preview_steps", "compute")
    for name, known in (declared(InversionSettings) | declared(TrainingChoices)).items():
        assert name in rest or options[name] == known.default, name
    assert options["template"] == DEFAULT_TEMPLATE


def test_bundle_curve_and_summary_are_those_of_the_training_and_nothing_is_overwritten(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    for again in (False, True):
        code, text = invoke(model, data, out, "--seed", "5")
        assert code == 0, text
        assert "anomaly_embedding_00001.safetensors: 3 of 3 steps" in text.replace("\n", "")
        assert ("done before" in text) == again
    code, text = invoke(model, data, out, "--seed", "6")
    assert code == 0 and "anomaly_embedding_00002.safetensors: 3 of 3 steps" in text.replace("\n", "")
    names = [f"anomaly_embedding_0000{n}.{kind}" for n in (1, 2) for kind in ("json", "png", "safetensors")]
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == names
    first = out / "anomaly_embedding_00001.safetensors"

    dataset = load_dataset(data, "part", SplitSettings("first n", 2))
    pairs = training_views(dataset.types, 64)
    settings = InversionSettings(steps=3, resolution=64, augmented_copies=1, seed=5)
    expected = AnomalyTrainer(load_diffusers(model), pairs, settings).run()
    bundle = load_bundle(first)
    assert bundle.types == ("part/bar", "part/dot")
    assert all(torch.equal(bundle.tokens[key], rows) for key, rows in expected.bundle.tokens.items())
    assert bundle.metadata["losses"] == [round(loss, 6) for loss in expected.losses]
    assert bundle.metadata["split"] == "first n" and len(bundle.metadata["training_files"]) == 8
    assert bundle.metadata["split_names"]["part/dot"] == {"train": ["0", "1"], "test": ["2"]}
    assert "memory about" in text.replace("\n", " ")
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


class StopAt(Quiet):
    """Ends a training after a step, counted with the images that are encoded before."""

    def __init__(self, total: int, last: int = 10**9) -> None:
        super().__init__(total)
        self.last = last

    def at(self, done: int, preview: object = None) -> None:
        super().at(done)
        if done >= self.last:
            raise StopTraining


def test_a_stopped_training_keeps_what_was_learned_and_resumes_to_the_same_bundle(
    model: Path, data: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(data, "part", SplitSettings("first n", 2))
    settings = InversionSettings(steps=5, resolution=64, augmented_copies=1)
    opened = open_model(model, "cpu")
    base = Base(opened.denoiser, {"model": opened.identity})
    images = 2 * 2 * 2  # two types of two pairs, each with one augmented copy

    def run(out: str, stop_after: int = 10**9, name: str = "a", steps: int = 5, **choices: bool) -> Trained:
        plan = anomaly_plan(base, dataset, replace(settings, steps=steps), Start(), name)
        assert plan.images == images
        store = FolderStore(tmp_path / out)
        chosen = TrainingChoices(**choices, preview_every=0)
        return run_training(plan, store, lambda n: StopAt(n, images + stop_after), lambda: 10**12, chosen)

    straight = run("straight")
    first = run("out", 2)
    assert len(first.losses) == 2 and first.stopped_at == 2
    assert load_bundle(first.path).metadata["stopped_at_step"] == 2
    states = tmp_path / "out" / ".training"
    assert len(list(states.iterdir())) == 1
    second = run("out", name="b")
    assert second.resumed == "resumed after step 2" and second.path.name == "b_00001.safetensors"
    tokens = load_bundle(straight.path).tokens
    assert all(torch.equal(rows, tokens[key]) for key, rows in load_bundle(second.path).tokens.items())
    assert not list(states.iterdir())
    assert run("out").reused and run("out").path == second.path
    kept = run("kept", resume=False, keep_state=True)
    assert kept.resumed == ""
    longer = run("kept", steps=7)
    assert longer.resumed == "resumed after step 5" and len(longer.losses) == 7


def test_a_number_that_another_process_takes_meanwhile_is_no_reason_to_fail(
    model: Path, data: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(data, "part", SplitSettings("first n", 2))
    opened = open_model(model, "cpu")
    settings = InversionSettings(steps=1, resolution=64, augmented_copies=0)
    plan = anomaly_plan(Base(opened.denoiser, {}), dataset, settings, Start(), "a")
    taken = tmp_path / "a_00001.safetensors"

    def make(total: int) -> Quiet:
        taken.write_bytes(b"another's")
        return Quiet(total)

    trained = run_training(plan, FolderStore(tmp_path), make, lambda: 10**12)
    assert trained.path.name == "a_00002.safetensors" and taken.read_bytes() == b"another's"


def test_a_mask_embedding_is_trained_by_the_same_command(prior: Path, data: Path, tmp_path: Path) -> None:
    code, text = invoke(prior, data, tmp_path, "--kind", "mask", "--tokens", "2", "--initial", "mask")
    assert code == 0, text
    bundle = load_bundle(tmp_path / "mask_embedding_00001.safetensors")
    assert bundle.kind == "mask" and {rows.shape for rows in bundle.tokens.values()} == {(2, 32)}
    code, text = invoke(prior, data, tmp_path, "--kind", "mask", "--clip")
    assert code == 1 and "kind: a mask embedding has no prompt" in text


def test_an_adaptation_lowers_its_loss_and_leaves_a_lora_that_training_takes(
    prior: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ["adapt", "--model", str(prior), "--data", str(data), "--category", "part", "--out", str(tmp_path)]
    small = [
        "--steps",
        "4",
        "--resolution",
        "64",
        "--rank",
        "2",
        "--learning-rate",
        "0.1",
        "--control-samples",
        "1",
        "--pictures",
        "2",
        "--accumulate",
        "2",
    ]
    result = CliRunner().invoke(app, [*arguments, *small])
    assert result.exit_code == 0, result.output
    assert "Control (change inside random masks" in result.output.replace("\n", " ")
    lora = load_lora(tmp_path / "normals_00001.safetensors")
    assert lora.metadata["control_before"] != lora.metadata["control_after"] is not None
    assert len(lora.metadata["losses"]) == 4 and lora.metadata["kind"] == "adaptation"
    assert lora.metadata["settings"]["options"]["accumulate"] == 2
    plain, adapted = tmp_path / "plain", tmp_path / "adapted"
    assert invoke(prior, data, plain)[0] == 0
    assert invoke(prior, data, adapted, "--lora", str(tmp_path / "normals_00001.safetensors"))[0] == 0
    one, other = (load_bundle(path / "anomaly_embedding_00001.safetensors") for path in (plain, adapted))
    # The same base model, but another model that the defects were learned on.
    assert one.base_fingerprint == other.base_fingerprint
    assert one.metadata["losses"] != other.metadata["losses"]


def test_a_merged_lora_computes_what_its_pairs_add_and_is_taken_off(prior: Path) -> None:
    network = load_ldm(prior).unet
    added = Lora(network, 2, seed=3)
    with torch.no_grad():
        for pair in added.pairs:
            pair.up.normal_(std=0.05)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 6, 32)
    with torch.no_grad():
        before = network(x, t, context)
        with added.attached(network):
            beside = network(x, t, context)
        with with_lora(network, added.file_tensors()):
            merged = network(x, t, context)
        after = network(x, t, context)
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, beside) and torch.equal(after, before)
    with (
        pytest.raises(InputError, match="lora: 1 of 1 layers"),
        with_lora(network, {"lora_unet_no.lora_down.weight": torch.zeros(1, 1)}),
    ):
        pass


def test_the_first_signal_lets_the_step_end_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with train_command._Stop() as stop:
        progress = train_command._Stoppable(Quiet(9), stop)
        progress.step()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StopTraining):
            progress.step()
        assert progress.done == 2
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
        (["--encoder", "large"], "error: encoder: unknown value 'large'"),
        (["--dtype", "int8"], "dtype: unknown value 'int8'"),
        (["--device", "nonsense"], "error: device: 'nonsense'"),
        (["--name", "../b"], "error: name: '../b'"),
        (["--initial", "a scratch"], "lacks text_encoder/config.json"),
        (["--clip"], "lacks text_encoder/config.json"),
        (["--dtype", "float16", "--device", "cpu"], "error: dtype: the CPU cannot train in float16"),
        (["--balance", "moon"], "balance: unknown value 'moon'"),
        (["--encoder-weights", "nowhere.pth"], "error: encoder weights: file: nowhere.pth does not exist"),
        (["--split", "list", "--train-list", "dot/9"], "- train_list: unknown pair dot/9"),
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
