"""States of trainings on disk: written whole or not at all, used by the very training that wrote them alone."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BundleError, TrainingError
from ..files import replacing, sweep
from ..restricted_pickle import read_restricted

if TYPE_CHECKING:
    from .loop import TrainingLoop

logger = logging.getLogger(__name__)
STATE_FORMAT = 1


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) to ``path``; a file already there is replaced whole or not at all."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with replacing(Path(path)) as partial:
        partial.write_bytes(buffer.getbuffer())


def read_state(path: Path) -> dict[str, Any]:
    """Read a file of ``write_state``. Raises TrainingError for a file that is none."""
    try:
        state = read_restricted(Path(path))
    except BundleError as error:
        raise TrainingError(f"training state: {Path(path).name} cannot be read ({error}). Start anew.") from error
    if not isinstance(state, dict):
        raise TrainingError(f"training state: {Path(path).name} holds no state. Start anew.")
    return state


@dataclass(frozen=True)
class StateFile:
    """Where a training keeps its state, and the identity that says which training it is.

    identity: the same text for the same data, model and settings, whatever the number of steps.
    """

    path: Path
    identity: str

    def save(self, loop: TrainingLoop) -> None:
        """Write the state of ``loop``. Raises OSError when the disk refuses; an older state then stays."""
        write_state(self.path, {"format": STATE_FORMAT, "identity": self.identity, "loop": loop.state_dict()})

    def save_if_possible(self, loop: TrainingLoop) -> None:
        """As ``save``, but a disk that refuses is a warning: what is learned may fit where the state does not."""
        try:
            self.save(loop)
        except OSError as error:
            logger.warning(
                "the state of the training cannot be written to %s (%s); it goes on, but could not be resumed from "
                "step %d. Free some space.",
                *(self.path.parent, error.strerror or error, loop.step),
            )

    def restore(self, loop: TrainingLoop) -> str:
        """Bring ``loop`` to the stored state. Returns what was done in words, "" when there is no state.

        A state of another training, of more steps than are wanted, or one that cannot be read is not used.
        """
        self._sweep()
        if not self.path.is_file():
            return ""
        try:
            state = read_state(self.path)
        except TrainingError as error:
            return f"a stored state was not used: {error}"
        if state.get("format") != STATE_FORMAT or state.get("identity") != self.identity:
            return "a stored state of another training was not used"
        done = len(state["loop"]["losses"])
        if done > loop.settings.steps:
            return f"a stored state of {done} steps was not used, it is past the {loop.settings.steps} that are wanted"
        loop.load_state_dict(state["loop"])
        return f"resumed after step {done}"

    def remove(self) -> None:
        """Delete the state and what an interrupted writing of it left."""
        self.path.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        sweep(self.path.parent)
