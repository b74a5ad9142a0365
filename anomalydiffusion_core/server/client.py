"""Queue a workflow in API format on a running ComfyUI server, follow it, and fetch what it made."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import websocket

from ..errors import AnomalyDiffusionError
from ..files import replacing
from .process import HostError, session

logger = logging.getLogger(__name__)

# Seconds without a message after which the server is asked whether the prompt is still there.
QUIET = 15.0
# Reconnections of the websocket before the server counts as lost.
PATIENCE = 20
# Seconds after its end within which a prompt must be in the server's history.
HISTORY_DELAY = 60.0

Workflow = Mapping[str, Mapping[str, Any]]


class WorkflowError(AnomalyDiffusionError):
    """A node refused or failed. `node_id`, `node_class`, `message` say which and why, `details` is its traceback."""

    def __init__(self, node_id: str, node_class: str, message: str, details: str = "") -> None:
        place = f"node {node_id} ({node_class}): " if node_id else ""
        super().__init__(place + message)
        self.node_id = node_id
        self.node_class = node_class
        self.message = message
        self.details = details


class WorkflowInterruptedError(AnomalyDiffusionError):
    """Somebody stopped the prompt on the server."""


@dataclass(frozen=True)
class Progress:
    """One step of a running workflow: `value` of `maximum` in the node; `done` of `total` nodes are finished.

    `maximum` is 0 while a node has not said how far it is; `ended` marks the last step of a node.
    """

    node_id: str
    title: str
    value: float
    maximum: float
    done: int
    total: int
    ended: bool = False


OnProgress = Callable[[Progress], None]


@dataclass
class RunResult:
    """What a finished prompt left: `outputs` maps a node id to the lists it showed (images, text, ...)."""

    prompt_id: str
    outputs: dict[str, dict[str, list[Any]]]
    seconds: float
    cached: tuple[str, ...] = field(default=())


def node_title(workflow: Workflow, node_id: str) -> str:
    """The title a node has in the workflow, else its class, else its id."""
    node = workflow.get(node_id, {})
    return str(node.get("_meta", {}).get("title") or node.get("class_type") or node_id)


def queue_workflow(
    address: str,
    workflow: Workflow,
    on_progress: OnProgress | None = None,
    check_alive: Callable[[], None] | None = None,
    timeout: float | None = None,
) -> RunResult:
    """Queue `workflow` on the server at `address` ("host:port") and return once it is finished.

    `on_progress` is called from this thread when a node starts, advances and ends. `check_alive` may raise when the
    server's process is known to be gone. When this function is left by an exception (Ctrl-C, an error raised in
    `on_progress`, `timeout` seconds passed), the prompt is interrupted on the server.

    Raises:
        WorkflowError: the server refused the workflow or a node failed.
        WorkflowInterruptedError: the prompt was stopped from elsewhere.
        HostError: no server there, or it went away.
        TimeoutError: `timeout` is over.
    """
    follower = _Follower(address, workflow, on_progress, check_alive, timeout)
    with session() as http:
        return follower.run(http)


class _Follower:
    """One prompt from queueing to its end."""

    def __init__(
        self,
        address: str,
        workflow: Workflow,
        on_progress: OnProgress | None,
        check_alive: Callable[[], None] | None,
        timeout: float | None,
    ) -> None:
        self.address = address
        self.workflow = workflow
        self.on_progress = on_progress
        self.check_alive = check_alive
        self.client = uuid.uuid4().hex
        self.prompt_id = ""
        self.current = ""
        self.begun: list[str] = []
        self.cached: list[str] = []
        self.started = time.monotonic()
        self.deadline = None if timeout is None else self.started + timeout

    def run(self, http: requests.Session) -> RunResult:
        socket = self._connect()
        try:
            self.prompt_id = self._post(http)
            try:
                self._follow(http, socket)
            except (WorkflowError, WorkflowInterruptedError):
                raise
            except BaseException:
                self._interrupt(http)
                raise
        finally:
            socket.close()
        return RunResult(self.prompt_id, self._outputs(http), time.monotonic() - self.started, tuple(self.cached))

    def _connect(self) -> websocket.WebSocket:
        try:
            return websocket.create_connection(
                f"ws://{self.address}/ws?clientId={self.client}", timeout=QUIET, http_no_proxy=["*"]
            )
        except (OSError, websocket.WebSocketException) as error:
            if self.check_alive is not None:
                self.check_alive()
            raise HostError(f"no ComfyUI server answers at {self.address} ({error})") from error

    def _post(self, http: requests.Session) -> str:
        body: Any = {"prompt": self.workflow, "client_id": self.client}
        try:
            answer = http.post(f"http://{self.address}/prompt", json=body, timeout=120)
        except requests.RequestException as error:
            raise HostError(f"the ComfyUI server at {self.address} does not take a workflow ({error})") from error
        if answer.ok:
            return str(answer.json()["prompt_id"])
        raise _refusal(answer)

    def _follow(self, http: requests.Session, socket: websocket.WebSocket) -> None:
        failures = 0
        while True:
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TimeoutError(f"the workflow did not finish in time; it was at {self._where()}")
            try:
                message = socket.recv()
                failures = 0
            except websocket.WebSocketTimeoutException:
                if self._ended(http):
                    return
                continue
            except (OSError, websocket.WebSocketException) as error:
                if self.check_alive is not None:
                    self.check_alive()
                failures += 1
                if failures > PATIENCE:
                    raise HostError(f"the ComfyUI server at {self.address} went away at {self._where()}") from error
                time.sleep(0.5)
                if self._ended(http):
                    return
                self._reconnect(socket)
                continue
            # Binary messages are preview images.
            if isinstance(message, str) and message and self._handle(json.loads(message)):
                return

    def _reconnect(self, socket: websocket.WebSocket) -> None:
        try:
            socket.connect(f"ws://{self.address}/ws?clientId={self.client}", timeout=QUIET, http_no_proxy=["*"])
        except (OSError, websocket.WebSocketException):
            logger.debug("the server at %s does not answer yet", self.address)

    def _ended(self, http: requests.Session) -> bool:
        """Whether the history says that the prompt is over; raises what a message would have raised."""
        if self.check_alive is not None:
            self.check_alive()
        entry = self._entry(http)
        for name, data in entry.get("status", {}).get("messages", []):
            if self._handle({"type": name, "data": data}):
                return True
        return bool(entry.get("status", {}).get("completed"))

    def _outputs(self, http: requests.Session) -> dict[str, Any]:
        # The server says that it is done a moment before it writes the history.
        last_try = time.monotonic() + HISTORY_DELAY
        while "outputs" not in (entry := self._entry(http)):
            if time.monotonic() > last_try:
                raise HostError(f"the ComfyUI server at {self.address} finished, but has no history of the workflow")
            time.sleep(0.05)
        return dict(entry["outputs"])

    def _entry(self, http: requests.Session) -> dict[str, Any]:
        try:
            answer = http.get(f"http://{self.address}/history/{self.prompt_id}", timeout=60)
            answer.raise_for_status()
            return dict(answer.json().get(self.prompt_id, {}))
        except requests.RequestException as error:
            if self.check_alive is not None:
                self.check_alive()
            raise HostError(f"the ComfyUI server at {self.address} went away at {self._where()}") from error

    def _handle(self, message: dict[str, Any]) -> bool:
        """Take in one message of the server; True when the prompt has ended well."""
        kind, data = message.get("type"), message.get("data") or {}
        if data.get("prompt_id") != self.prompt_id:
            return False
        if kind == "execution_success":
            self._end_of_node()
            return True
        if kind == "execution_error":
            raise WorkflowError(
                str(data.get("node_id", "")),
                str(data.get("node_type", "")),
                f"{data.get('exception_type', 'error')}: {data.get('exception_message', '')}".strip(),
                "".join(data.get("traceback") or []),
            )
        if kind == "execution_interrupted":
            raise WorkflowInterruptedError(f"the workflow was stopped at {self._where()}")
        if kind == "execution_cached":
            self.cached = [str(node) for node in data.get("nodes", [])]
        elif kind == "executing" and data.get("node") is not None:
            self._begin(str(data["node"]))
        elif kind == "progress" and data.get("node") is not None:
            self._begin(str(data["node"]))
            self._tell(float(data["value"]), float(data["max"]))
        return False

    def _begin(self, node: str) -> None:
        if node == self.current:
            return
        self._end_of_node()
        self.current = node
        if node not in self.begun:
            self.begun.append(node)
        self._tell(0.0, 0.0)

    def _end_of_node(self) -> None:
        if self.current:
            self._tell(1.0, 1.0, ended=True)
            self.current = ""

    def _tell(self, value: float, maximum: float, ended: bool = False) -> None:
        if self.on_progress is None:
            return
        done = len(self.cached) + len(self.begun) - (0 if ended else 1)
        title = node_title(self.workflow, self.current)
        self.on_progress(Progress(self.current, title, value, maximum, done, len(self.workflow), ended))

    def _where(self) -> str:
        return f"node {self.current} ({node_title(self.workflow, self.current)})" if self.current else "its start"

    def _interrupt(self, http: requests.Session) -> None:
        """Take the prompt out of the queue, or stop it when it runs; a server that is gone needs neither."""
        try:
            http.post(f"http://{self.address}/queue", json={"delete": [self.prompt_id]}, timeout=10)
            http.post(f"http://{self.address}/interrupt", json={"prompt_id": self.prompt_id}, timeout=10)
        except requests.RequestException as error:
            logger.debug("the prompt could not be interrupted: %s", error)


def _refusal(answer: requests.Response) -> WorkflowError:
    """The error that a server's answer to an invalid workflow stands for."""
    try:
        body = answer.json()
    except requests.JSONDecodeError:
        return WorkflowError("", "", f"the server answered {answer.status_code}: {answer.text[:500]}")
    error = body.get("error") or {}
    summary = error.get("message", "the workflow is invalid") if isinstance(error, dict) else str(error)
    node_errors = body.get("node_errors") or {}
    for node_id, found in node_errors.items():
        reasons = [f"{e.get('message', '')}: {e.get('details', '')}".strip(": ") for e in found.get("errors", [])]
        return WorkflowError(str(node_id), str(found.get("class_type", "")), f"{summary}: {'; '.join(reasons)}")
    details = error.get("details", "") if isinstance(error, dict) else ""
    return WorkflowError("", "", f"{summary} {details}".strip())


def download(address: str, item: Mapping[str, str], folder: Path) -> Path:
    """Save one file that a node showed ({"filename", "subfolder", "type"}) into `folder` under its own name."""
    name = Path(item["filename"]).name
    query = {"filename": item["filename"], "subfolder": item.get("subfolder", ""), "type": item.get("type", "output")}
    with session() as http:
        answer = http.get(f"http://{address}/view", params=query, timeout=300)
    if not answer.ok:
        raise HostError(f"the server at {address} does not give {name} ({answer.status_code})")
    with replacing(folder / name) as partial:
        partial.write_bytes(answer.content)
    return folder / name
