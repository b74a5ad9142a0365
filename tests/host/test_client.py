"""The headless client against the real server, with ComfyUI's own nodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from anomalydiffusion_core.server.client import Progress, WorkflowError, download, queue_workflow
from anomalydiffusion_core.server.process import Host, HostError, LocalServer, find_host, free_port, session


def picture_workflow(width: int = 40, colour: int = 0xFF8000) -> dict[str, Any]:
    return {
        "7": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 24, "batch_size": 2, "color": colour},
            "_meta": {"title": "Two pictures"},
        },
        "9": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "client/picture"}},
    }


def test_outputs_come_back_and_every_node_reports_its_end(host: Any, tmp_path: Path) -> None:
    steps: list[Progress] = []
    result = queue_workflow(host.address, picture_workflow(), steps.append)
    shown = result.outputs["9"]["images"]
    assert len(shown) == 2
    with Image.open(download(host.address, shown[1], tmp_path)) as picture:
        assert picture.size == (40, 24)
        assert picture.convert("RGB").getpixel((39, 23)) == (255, 128, 0)
    assert [(step.node_id, step.title) for step in steps if step.ended] == [("7", "Two pictures"), ("9", "SaveImage")]
    assert [(step.done, step.total) for step in steps if step.ended] == [(1, 2), (2, 2)]


def test_previews_outlive_another_server_on_the_same_folder(host: Any, tmp_path: Path) -> None:
    workflow = {"7": picture_workflow(43)["7"], "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}}
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
    first = queue_workflow(host.address, picture_workflow(41))
    again = queue_workflow(host.address, picture_workflow(41))
    assert again.outputs == first.outputs
    assert set(again.cached) == {"7", "9"}


def test_refused_workflow_names_node_and_input(host: Any) -> None:
    with pytest.raises(WorkflowError, match="width") as caught:
        queue_workflow(host.address, picture_workflow(width=-3))
    assert (caught.value.node_id, caught.value.node_class) == ("7", "EmptyImage")
    unknown = {"1": {"class_type": "NoSuchNode", "inputs": {}}}
    with pytest.raises(WorkflowError, match="NoSuchNode"):
        queue_workflow(host.address, unknown)


def test_failing_node_is_named_with_its_message(host: Any) -> None:
    workflow = picture_workflow(42)
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
        queue_workflow(host.address, picture_workflow(43), leave)
    # The queue must take and finish the next one.
    assert queue_workflow(host.address, picture_workflow(44), timeout=120).outputs["9"]["images"]
    with session() as http:
        queue = http.get(f"http://{host.address}/queue", timeout=30).json()
    assert queue == {"queue_running": [], "queue_pending": []}


def test_no_server_and_a_file_that_is_gone_are_said(host: Any, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no ComfyUI server answers"):
        queue_workflow(f"127.0.0.1:{free_port()}", picture_workflow())
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
