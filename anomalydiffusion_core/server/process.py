"""Start a ComfyUI server of our own, wait for it, and stop it with everything it started."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

from ..errors import AnomalyDiffusionError, InputError
from ..files import is_left_behind, owner_tag, remove
from ..plain_json import read_json
from .address import session

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
# Without these, transformers and the hub client look for the network when a tokenizer is built.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
LOG_LINES_SHOWN = 30
TEMPORARY = "anomalydiffusion_."
"""Begin of the names of folders in the system's temporary directory; the process that uses one follows."""


class HostError(AnomalyDiffusionError):
    """The ComfyUI server is missing, did not start, or went away; the message says where its log is."""


@dataclass(frozen=True)
class Host:
    """Where ComfyUI is: its program folder, its base folder (input, output, models), its interpreter."""

    comfyui: Path
    base: Path
    python: str

    @property
    def input(self) -> Path:
        """Folder of ComfyUI's input files."""
        return self.base / "input"

    @property
    def output(self) -> Path:
        """Folder that ComfyUI writes to."""
        return self.base / "output"


def find_host(repository: Path = REPOSITORY) -> Host:
    """Return the host that set-up wrote down. Raises HostError when set-up has not run.

    COMFYUI_PATH in the environment names another ComfyUI, which the running interpreter starts.
    """
    record = repository / ".comfy" / "host.json"
    if not record.is_file():
        raise HostError(
            f"{record} is not there: ComfyUI has not been set up. Run `make setup`, or "
            f"`python tools/setup_host.py`, in a clone of this repository"
        )
    try:
        found = read_json(record, "set-up")
        host = Host(Path(found["comfyui"]), Path(found["base"]), str(found["python"]))
    except (InputError, KeyError, TypeError) as error:
        raise HostError(f"{record} is damaged ({error}). Run the set-up again") from error
    other = os.environ.get("COMFYUI_PATH")
    if other:
        host = Host(Path(other).expanduser().absolute(), host.base, sys.executable)
    if not (host.comfyui / "main.py").is_file():
        raise HostError(f"{host.comfyui} has no main.py any more. Run the set-up again")
    return host


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peak_memory(pid: int) -> int:
    """Largest resident memory of a process so far, in bytes; where the system keeps no peak, the present one."""
    status = Path(f"/proc/{pid}/status")
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found.group(1)) * 1024
    except OSError:
        pass  # not Linux, or the process is gone: psutil says which
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(getattr(memory, "peak_wset", memory.rss))


class LocalServer:
    """A ComfyUI server on 127.0.0.1, as a context manager.

    Args:
        host: the ComfyUI to run.
        port: TCP port, a free one by default.
        log_path: where the server's own output goes; None shows it in the terminal.
        arguments: more arguments of ComfyUI's main.py.
        cpu: compute on the CPU even where there is a GPU; by default only where torch sees none.
        timeout: seconds until it must answer.

    Raises:
        HostError: on entering, when it ends or does not answer in time; the end of its log is in the message.
    """

    def __init__(
        self,
        host: Host,
        port: int | None = None,
        log_path: Path | None = None,
        arguments: Sequence[str] = (),
        cpu: bool | None = None,
        timeout: float = 300.0,
    ) -> None:
        self.host = host
        self.port = port or free_port()
        self.log_path = log_path
        self.arguments = tuple(arguments)
        self.cpu = cpu
        self.timeout = timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def address(self) -> str:
        """Host and port, as the client takes them."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """The command line that starts the server."""
        command = [self.host.python, str(self.host.comfyui / "main.py"), "--base-directory", str(self.host.base)]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        command += ["--preview-method", "latent2rgb", "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        if self.temporary is not None:
            command += ["--temp-directory", self.temporary.name]
        if self.cpu or (self.cpu is None and not _has_accelerator()):
            # The attention of commands that run without ComfyUI: the same bytes, and on a CPU the quickest.
            command += ["--cpu", "--use-pytorch-cross-attention"]
        return [*command, *self.arguments]

    def start(self) -> LocalServer:
        """Start the server and return once it answers."""
        sink = None
        if self.log_path is not None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            sink = self.log_path.open("wb")
        # Every ComfyUI empties its folder of previews when it starts and ends; two servers must not share one.
        sweep_temporary()
        prefix = f"{TEMPORARY}{owner_tag()}."
        self.temporary = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
        environment = {**os.environ, **OFFLINE, "PYTHONUNBUFFERED": "1"}
        group: Any = {"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}
        if sys.platform == "linux":
            group["preexec_fn"] = _end_with_parent
        try:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.host.comfyui,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT if sink else None,
                **group,
            )
        except OSError as error:
            raise HostError(f"ComfyUI could not be started with {self.host.python}: {error}") from error
        finally:
            if sink is not None:
                sink.close()
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + self.timeout
        with session() as http:
            while time.monotonic() < deadline:
                self.check_alive()
                try:
                    if http.get(f"http://{self.address}/system_stats", timeout=10).ok:
                        return
                except requests.RequestException:
                    pass  # not listening yet
                time.sleep(0.2)
        raise HostError(f"ComfyUI did not answer within {self.timeout:.0f} s.{self.log_tail()}")

    def check_alive(self) -> None:
        """Raise HostError when the server's process has ended."""
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise HostError(f"ComfyUI is not running (exit code {code}).{self.log_tail()}")

    def wait(self) -> None:
        """Return never; raise HostError when the server ends by itself."""
        if self.process is not None:
            self.process.wait()
        self.check_alive()

    def log_tail(self) -> str:
        """The last lines of the server's log, for an error message."""
        if self.log_path is None or not self.log_path.is_file():
            return ""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return f" The end of its log, {self.log_path}:\n" + "\n".join(lines)

    def peak_memory_gb(self) -> float:
        """Largest resident memory of the server so far, in GB (1e9 bytes)."""
        return 0.0 if self.process is None else peak_memory(self.process.pid) / 1e9

    def stop(self) -> None:
        """End the server and every process that it started."""
        try:
            self._end()
        finally:
            if self.temporary is not None:
                self.temporary.cleanup()
                self.temporary = None

    def _end(self) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        family = _descendants(process.pid)
        if process.poll() is None:
            if sys.platform == "win32":
                process.terminate()
            else:
                process.send_signal(signal.SIGINT)  # ComfyUI cleans its temp folder on this one
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for relative in family:
            try:
                relative.kill()
            except psutil.NoSuchProcess:
                continue

    def __enter__(self) -> LocalServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def sweep_temporary() -> None:
    """Remove the folders that commands which were killed left in the system's temporary directory."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        if is_left_behind(path):
            remove(path)


def _end_with_parent() -> None:
    """In the new process: be interrupted by the kernel when the parent dies, even by a signal it cannot catch."""
    PR_SET_PDEATHSIG = 1  # noqa: N806 - the name it has in prctl(2)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()
