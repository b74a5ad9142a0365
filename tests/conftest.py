"""What all tests share: a mark per folder, and one real ComfyUI server for the run, started when first needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# `python -m pytest` puts the folder it is started in on the path; with the repository root there, our `nodes` would
# be found as the top-level module of that name, which is ComfyUI's.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path.append(str(ROOT / "tests" / "support"))
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, and so do the servers and commands that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"

from real_data import REAL  # noqa: E402

from anomalydiffusion_core.server.client import RunResult, queue_workflow  # noqa: E402
from anomalydiffusion_core.server.process import Host, LocalServer, find_host  # noqa: E402

EXTENSION_NAME = "AnomalyDiffusion"
# Generous: the same run was seen many times slower on a machine that others use too.
RUN_TIMEOUT = 900.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the mark of the folder that it lies in."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in ("core", "host", "browser"):
            item.add_marker(getattr(pytest.mark, folder))


def shares_a_process_with(test: str) -> str:
    """The group of a test by its id: those that use one server, one process with ComfyUI, or the fixtures of a file.

    The marks of xdist would say the same, but pytest 9.2 leaves them without effect.
    """
    parts = test.partition("::")[0].split("/")[1:]
    if "in_process" in parts:
        return "in_process"
    return "server" if parts[0] in ("host", "browser") else "/".join(parts)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send each group to one process, the largest groups first."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shares_a_process_with(nodeid)

    return ByGroup(config, log)


@dataclass(frozen=True)
class RunningHost:
    """A real ComfyUI server with this extension, and its folders."""

    address: str
    base: Path
    server: LocalServer

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def models(self) -> Path:
        return self.base / "models"

    def run(self, workflow: Mapping[str, Mapping[str, Any]]) -> RunResult:
        """Queue a workflow in API format and wait for it. Raises client.WorkflowError when a node refuses or fails."""
        return queue_workflow(self.address, workflow, check_alive=self.server.check_alive, timeout=RUN_TIMEOUT)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    """The server: the ComfyUI of set-up, a base folder of its own, this repository linked into its custom_nodes."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (base / name).mkdir()
    (base / "custom_nodes" / EXTENSION_NAME).symlink_to(ROOT, target_is_directory=True)
    found = find_host(ROOT)
    log = base / "comfyui.log"
    with LocalServer(Host(found.comfyui, base, sys.executable), log_path=log, cpu=True, timeout=600) as server:
        text = log.read_text(encoding="utf-8", errors="replace")
        if "IMPORT FAILED): " + str(base) in text:
            pytest.fail(f"ComfyUI could not load the extension.{server.log_tail()}")
        yield RunningHost(server.address, base, server)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images, in the folder ANOMALYDIFFUSION_TEST_DATA or in shared/data beside the repository."""
    if not REAL.is_dir():
        pytest.skip(f"no real images at {REAL} (ANOMALYDIFFUSION_TEST_DATA names another folder)")
    return REAL
