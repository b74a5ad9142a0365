"""The nodes as the server shows them to its page, and what a user sees when a graph fails or is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.backends.ldm import LdmDenoiser
from anomalydiffusion_core.bundles.bundle import load_bundle
from anomalydiffusion_core.demo_prior.storing import store
from anomalydiffusion_core.server.address import session
from anomalydiffusion_core.server.client import Progress, WorkflowError, WorkflowInterruptedError, queue_workflow

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))


def get(host: Any, path: str) -> Any:
    with session() as http:
        response = http.get(f"http://{host.address}{path}", timeout=60)
    response.raise_for_status()
    return response


def test_the_page_gets_nodes_help_and_translations(host: Any) -> None:
    described = get(host, "/object_info").json()
    ours = {name: node for name, node in described.items() if name.startswith("AnomalyDiffusion")}
    assert sorted(ours) == PAGES and PAGES
    assert {node["python_module"] for node in ours.values()} == {"custom_nodes.AnomalyDiffusion"}
    checkpoint = ours["AnomalyDiffusionLoadLDMCheckpoint"]["input"]["required"]["checkpoint"]
    shipped = [path.name for path in (ROOT / "models").glob("*.safetensors")]
    assert set(shipped) <= set(checkpoint[1]["options"])
    for name in PAGES:
        assert get(host, f"/extensions/AnomalyDiffusion/docs/{name}.md").text.startswith("# ")
    translated = get(host, "/i18n").json()
    assert set(PAGES) <= set(translated["zh"]["nodeDefs"]) and set(PAGES) <= set(translated["en"]["nodeDefs"])


def test_a_failing_node_names_the_folder(host: Any) -> None:
    workflow = {
        "1": {
            "class_type": "AnomalyDiffusionLoadDataset",
            "inputs": {
                "folder": "not_there",
                "category": "part",
                "split": "lowest third",
                "train_count": 6,
                "split_seed": 0,
            },
        }
    }
    with pytest.raises(WorkflowError, match=r"folder: .*not_there does not exist\. Give a folder"):
        host.run(workflow)


@pytest.fixture(scope="module")
def training(host: Any) -> dict[str, Any]:
    """A training that would take hours, on a tiny model and two images."""
    tiny = LdmDenoiser.random(1)
    store(
        host.models / "anomalydiffusion_checkpoints" / "stop.safetensors", tiny.autoencoder, tiny.unet, tiny.words, {}
    )
    generator = np.random.default_rng(0)
    for number in range(2):
        image = generator.integers(90, 110, (64, 64, 3)).astype(np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 10 : 30 + number] = 255
        for place, pixels in (
            (f"train/good/{number}.png", image),
            (f"test/dot/{number}.png", np.where(mask[..., None] > 0, 250, image).astype(np.uint8)),
            (f"ground_truth/dot/{number}_mask.png", mask),
        ):
            path = host.input / "stop" / "part" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    data = {"folder": "stop", "category": "part", "split": "first n", "train_count": 1, "split_seed": 0}
    settings = {"name": "stopped", "steps": 100000, "batch_size": 1, "learning_rate": 0.005, "resolution": 64}
    settings |= {"augmented_copies": 0, "flips": False, "seed": 0, "anomaly_tokens": 2, "spatial_tokens": 1}
    settings |= {"encoder": "light", "normalize_by_mask_area": False}
    links = {"model": ["1", 0], "vae": ["1", 1], "dataset": ["2", 0], "initial": ["1", 3]}
    return {
        "1": {"class_type": "AnomalyDiffusionLoadLDMCheckpoint", "inputs": {"checkpoint": "stop.safetensors"}},
        "2": {"class_type": "AnomalyDiffusionLoadDataset", "inputs": data},
        "3": {"class_type": "AnomalyDiffusionTrainAnomalyEmbedding", "inputs": {**links, **settings}},
    }


def test_interrupt_stops_a_training_and_the_next_run_works(host: Any, training: dict[str, Any]) -> None:
    seen: list[float] = []

    def on_progress(step: Progress) -> None:
        if step.node_id == "3" and step.maximum > 0:
            seen.append(step.value)
            if len(seen) == 3:
                with session() as http:
                    http.post(f"http://{host.address}/interrupt", json={}, timeout=60).raise_for_status()

    with pytest.raises(WorkflowInterruptedError):
        queue_workflow(host.address, training, on_progress, check_alive=host.server.check_alive, timeout=600)
    assert max(seen) < 100000
    bundles = host.models / "anomalydiffusion"
    # What was learned is kept and says that it is not finished.
    assert [path.name for path in bundles.glob("*stopped*")] == ["stopped_00001.safetensors"]
    kept = load_bundle(bundles / "stopped_00001.safetensors").metadata
    assert 0 < kept["stopped_at_step"] == len(kept["losses"]) < 100000
    training["3"]["inputs"]["steps"] = 2
    result = host.run(training)
    assert result.outputs["3"]["bundle_file"] == ["stopped_00002.safetensors"]
    assert "stopped_at_step" not in load_bundle(bundles / "stopped_00002.safetensors").metadata
