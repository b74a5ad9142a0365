"""All weights of a small model tuned on normal images: what it gets better at, resuming, and the new file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from anomalydiffusion_core.backends.ldm import load_ldm
from anomalydiffusion_core.cli.app import app
from anomalydiffusion_core.data.images import write_image
from anomalydiffusion_core.data.mvtec import AnomalyDataset, load_dataset
from anomalydiffusion_core.demo_prior import tuning
from anomalydiffusion_core.demo_prior.tuning import TuneSettings, tune_file
from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.progress import Quiet
from anomalydiffusion_core.server.runs import DEMO_PRIOR

pytestmark = pytest.mark.core

SETTINGS = TuneSettings(20, 4, batch_size=2, images=4, control_samples=1, resolution=64)


def ring(seed: int, size: int = 64) -> torch.Tensor:
    """A part that no renderer makes: yellow rings on dark blue, at a place of its own."""
    generator = torch.Generator().manual_seed(seed)
    down, right = (26 + 12 * torch.rand(2, generator=generator)).tolist()
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    on = ((y - down).square() + (x - right).square()).sqrt().remainder(9) < 4
    yellow, blue = (torch.tensor(colour)[:, None, None] for colour in ((0.9, 0.8, 0.1), (0.05, 0.1, 0.4)))
    return torch.where(on, yellow, blue)


@pytest.fixture(scope="module", autouse=True)
def few_renders() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "REPLAYED", 2)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnomalyDataset:
    root = tmp_path_factory.mktemp("data")
    for number in range(6):
        write_image(root / "ring" / "train" / "good" / f"{number}.png", ring(number))
    return load_dataset(root, "ring")


@pytest.fixture(scope="module")
def model() -> Path:
    return DEMO_PRIOR


@pytest.fixture(scope="module")
def tuned(model: Path, dataset: AnomalyDataset, tmp_path_factory: pytest.TempPathFactory) -> tuning.Tuned:
    return tune_file(model, dataset, SETTINGS, tmp_path_factory.mktemp("out"), "ring", Quiet)


def held_out_psnr(path: Path) -> float:
    denoiser, images = load_ldm(path), torch.stack([ring(seed) for seed in range(50, 54)])
    return float(-10 * torch.log10((denoiser.decode(denoiser.encode(images)) - images).square().mean()))


def test_it_redraws_parts_that_it_has_not_learned_from(model: Path, tuned: tuning.Tuned) -> None:
    assert held_out_psnr(tuned.path) > held_out_psnr(model) + 0.05
    assert tuned.figures["psnr_after"] > tuned.figures["psnr_before"]
    assert tuned.figures["control_after"] < tuned.figures["control_before"]
    assert "Learned from 4 normal images" in tuned.describe()


def test_the_new_file_is_a_model_of_its_own_and_tells_where_it_is_from(model: Path, tuned: tuning.Tuned) -> None:
    before, after = load_ldm(model), load_ldm(tuned.path)
    assert after.fingerprint() != before.fingerprint() and after.names == before.names
    assert tuned.path.name == "ring_00001.safetensors" and tuned.path.with_suffix(".json").is_file()
    assert [path.name for path in sorted(tuned.path.parent.iterdir())][:1] == [".training"]
    assert not list((tuned.path.parent / ".training").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "prior"])
def test_a_stopped_tuning_resumes_to_the_same_file(
    model: Path, dataset: AnomalyDataset, tuned: tuning.Tuned, tmp_path: Path, stage: str
) -> None:
    last = 11 if stage == "autoencoder" else SETTINGS.autoencoder_steps + 2

    class Bar(Quiet):
        def at(self, done: int, preview: object = None) -> None:
            super().at(done)
            if self.total == SETTINGS.autoencoder_steps + SETTINGS.steps and done == last and not stopped:
                stopped.append(done)
                raise KeyboardInterrupt

    stopped: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        tune_file(model, dataset, SETTINGS, tmp_path, "ring", Bar)
    again = tune_file(model, dataset, SETTINGS, tmp_path, "ring", Bar)
    assert stopped == [last]
    expected = load_file(tuned.path)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(again.path).items())


def test_the_command_writes_the_model_and_says_what_was_measured(
    model: Path, dataset: AnomalyDataset, tmp_path: Path
) -> None:
    given = ["tune", "--model", model, "--data", dataset.folder.parent, "--category", "ring", "--out", tmp_path]
    small = ["--autoencoder-steps", 2, "--steps", 2, "--batch-size", 2, "--images", 2, "--resolution", 64]
    small += ["--control-samples", 0]
    done = CliRunner().invoke(app, [str(text) for text in (*given, *small)])
    assert done.exit_code == 0, done.output
    assert "tuned_00001.safetensors" in done.output and "Nothing was measured" in done.output
    assert load_ldm(tmp_path / "tuned_00001.safetensors").latent_channels == 4


def test_a_data_set_without_normal_images_is_refused(model: Path, dataset: AnomalyDataset, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match="no normal images"):
        tune_file(model, replace(dataset, normals=()), SETTINGS, tmp_path, "ring", Quiet)


def test_a_batch_has_renders_and_images_whatever_its_size() -> None:
    shares = {
        (share, batch): TuneSettings(replay=share).replayed_of(batch) for share in (0, 0.25, 0.9) for batch in (2, 8)
    }
    assert shares == {(0, 2): 0, (0, 8): 0, (0.25, 2): 1, (0.25, 8): 2, (0.9, 2): 1, (0.9, 8): 7}
