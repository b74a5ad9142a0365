"""The headless client against the real server, with ComfyUI's own nodes."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from PIL import Image

from anomalydiffusion_core.server.address import session
from anomalydiffusion_core.server.client import (
    Progress,
    WorkflowError,
    WorkflowInterruptedError,
    download,
    queue_workflow,
)
from anomalydiffusion_core.server.process import Host, HostError, LocalServer, find_host, free_port


def image_workflow(width: int = 40, colour: int = 0xFF8000) -> dict[str, Any]:
    return {
        "7": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 24, "batch_size": 2, "color": colour},
            "_meta": {"title": "Two images"},
        },
        "9": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "client/image"}},
    }


def slow_workflow(seed: int) -> dict[str, Any]:
    """Samples for minutes unless it is stopped."""
    sampling = {
        "seed": seed,
        "steps": 2000,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    links = {"model": ["1", 0], "positive": ["1", 2], "negative": ["1", 2], "latent_image": ["2", 0]}
    return {
        "1": {"class_type": "AnomalyDiffusionLoadLDMCheckpoint", "inputs": {"checkpoint": "demo_prior.safetensors"}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 4}},
        "3": {"class_type": "KSampler", "inputs": {**sampling, **links}},
        "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "client/slow"}},
    }


def test_outputs_come_back_and_every_node_reports_its_end(host: Any, tmp_path: Path) -> None:
    steps: list[Progress] = []
    result = queue_workflow(host.address, image_workflow(), steps.append)
    shown = result.outputs["9"]["images"]
    assert len(shown) == 2
    with Image.open(download(host.address, shown[1], tmp_path)) as image:
        assert image.size == (40, 24)
        assert image.convert("RGB").getpixel((39, 23)) == (255, 128, 0)
    assert [(step.node_id, step.title) for step in steps if step.ended] == [("7", "Two images"), ("9", "SaveImage")]
    assert [(step.done, step.total) for step in steps if step.ended] == [(1, 2), (2, 2)]


def test_previews_outlive_another_server_on_the_same_folder(host: Any, tmp_path: Path) -> None:
    workflow = {"7": image_workflow(43)["7"], "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}}
    shown = queue_workflow(host.address, workflow).outputs["8"]["images"]
    assert {item["type"] for item in shown} == {"temp"}
    other = LocalServer(Host(find_host().comfyui, host.base, sys.executable), log_path=tmp_path / "log", cpu=True)
    with other:
        assert other.temporary is not None
        folder = Path(other.temporary.name)
        assert folder.is_dir()
    assert not folder.exists()
    assert download(host.address, shown[0], tmp_path).is_file()


def test_unchanged_workflow_is_answered_from_the_cache(host: Any) -> None:
    first = queue_workflow(host.address, image_workflow(41))
    again = queue_workflow(host.address, image_workflow(41))
    assert again.outputs == first.outputs
    assert set(again.cached) == {"7", "9"}


def test_refused_workflow_names_node_and_input(host: Any) -> None:
    with pytest.raises(WorkflowError, match="width") as caught:
        queue_workflow(host.address, image_workflow(width=-3))
    assert (caught.value.node_id, caught.value.node_class) == ("7", "EmptyImage")
    unknown = {"1": {"class_type": "NoSuchNode", "inputs": {}}}
    with pytest.raises(WorkflowError, match="NoSuchNode"):
        queue_workflow(host.address, unknown)


def test_failing_node_is_named_with_its_message(host: Any) -> None:
    workflow = image_workflow(42)
    workflow["9"]["inputs"]["filename_prefix"] = "../outside"
    with pytest.raises(WorkflowError) as caught:
        queue_workflow(host.address, workflow)
    assert (caught.value.node_id, caught.value.node_class) == ("9", "SaveImage")
    assert "outside" in caught.value.message
    assert "File " in caught.value.details


def test_leaving_by_an_exception_stops_the_prompt(host: Any) -> None:
    class LeaveError(Exception):
        pass

    def leave(step: Progress) -> None:
        raise LeaveError

    with pytest.raises(LeaveError):
        queue_workflow(host.address, image_workflow(43), leave)
    # The queue must take and finish the next one.
    assert queue_workflow(host.address, image_workflow(44), timeout=120).outputs["9"]["images"]
    with session() as http:
        queue = http.get(f"http://{host.address}/queue", timeout=30).json()
    assert queue == {"queue_running": [], "queue_pending": []}


def queue_of(host: Any) -> dict[str, Any]:
    with session() as http:
        return dict(http.get(f"http://{host.address}/queue", timeout=30).json())


def test_a_workflow_that_is_refused_in_part_is_not_run(host: Any) -> None:
    workflow = image_workflow(45)
    workflow["10"] = {"class_type": "EmptyImage", "inputs": {**workflow["7"]["inputs"], "width": 0}}
    workflow["11"] = {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "client/half"}}
    with pytest.raises(WorkflowError, match="width") as caught:
        queue_workflow(host.address, workflow)
    assert (caught.value.node_id, caught.value.node_class) == ("10", "EmptyImage")
    assert queue_of(host) == {"queue_running": [], "queue_pending": []}
    assert not list(host.output.glob("client/half*"))


def test_the_message_of_our_own_errors_has_no_class_and_no_path(host: Any) -> None:
    inputs = {"results": "none_here", "tables": "", "folder": "client/tables"}
    node = {"class_type": "AnomalyDiffusionResultsTable", "inputs": inputs}
    with pytest.raises(WorkflowError) as caught:
        queue_workflow(host.address, {"1": node})
    assert caught.value.message.startswith("results: ")


def test_a_prompt_that_was_taken_out_of_the_queue_ends(host: Any) -> None:
    with session() as http, ThreadPoolExecutor(1) as pool:
        body = {"prompt": slow_workflow(1)}
        first = http.post(f"http://{host.address}/prompt", json=body, timeout=30).json()["prompt_id"]
        try:
            ended = pool.submit(queue_workflow, host.address, image_workflow(46), timeout=60)
            while not (pending := queue_of(host)["queue_pending"]):
                time.sleep(0.05)
            http.post(f"http://{host.address}/queue", json={"delete": [pending[0][1]]}, timeout=30)
            with pytest.raises(WorkflowInterruptedError, match="neither in the queue nor in the history"):
                ended.result()
        finally:
            while queue_of(host)["queue_running"]:
                http.post(f"http://{host.address}/interrupt", json={"prompt_id": first}, timeout=30)
                time.sleep(0.1)


def test_stopping_while_the_prompt_is_posted_leaves_no_job(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    send = requests.Session.post

    def stopped(self: Any, url: str, **more: Any) -> Any:
        answer = send(self, url, **more)
        if url.endswith("/prompt"):
            raise KeyboardInterrupt  # the server has the workflow, its answer is never read
        return answer

    monkeypatch.setattr(requests.Session, "post", stopped)
    with pytest.raises(KeyboardInterrupt):
        queue_workflow(host.address, slow_workflow(2))
    assert queue_of(host) == {"queue_running": [], "queue_pending": []}


def test_a_server_below_a_path_is_reached(host: Any, tmp_path: Path) -> None:
    address = f"http://{host.address}/api"
    shown = queue_workflow(address, image_workflow(47)).outputs["9"]["images"]
    assert download(address, shown[0], tmp_path).is_file()


def test_no_server_and_a_file_that_is_gone_are_said(host: Any, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no ComfyUI server answers"):
        queue_workflow(f"127.0.0.1:{free_port()}", image_workflow())
    with pytest.raises(HostError, match="nothing_here.png"):
        download(host.address, {"filename": "nothing_here.png"}, tmp_path)


def test_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    found = find_host()
    broken = Host(found.comfyui, tmp_path, sys.executable)
    server = LocalServer(broken, log_path=tmp_path / "log.txt", arguments=["--no-such-option"], cpu=True)
    with pytest.raises(HostError, match="unrecognized arguments: --no-such-option"):
        server.start()
    assert server.process is None


def test_peak_memory_and_liveness_are_those_of_the_server(host: Any) -> None:
    server: LocalServer = host.server
    assert server.process is not None
    resident = psutil.Process(server.process.pid).memory_info().rss / 1e9
    assert resident <= server.peak_memory_gb() < 24
    assert server.peak_memory_gb() > 0.2
    server.check_alive()
