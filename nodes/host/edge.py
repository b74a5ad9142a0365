"""Values of API clients as they were sent: the server makes 1 of 1.5 and of true without a word, and lets NaN pass.

ComfyUI converts the values of a prompt before it checks them. A handler sees them first and puts in the place of a
value that cannot be meant a text that no conversion takes: the server then refuses the prompt, and names node, input
and value itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NUMBERS = ("INT", "FLOAT")


def guard_prompts(nodes: Sequence[Any]) -> None:
    """Let the running server refuse prompts with numbers for these nodes that are none."""
    running = sys.modules.get("server")
    server = getattr(getattr(running, "PromptServer", None), "instance", None)
    if server is not None:
        server.add_on_prompt_handler(refusing(nodes))


def refusing(nodes: Sequence[Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A handler of prompts that makes values fail which the server would bend."""
    kinds = {node.GET_SCHEMA().node_id: _number_inputs(node) for node in nodes}

    def handler(request: dict[str, Any]) -> dict[str, Any]:
        prompt = request.get("prompt")
        found = [node for node in prompt.values() if isinstance(node, dict)] if isinstance(prompt, dict) else []
        if not any(str(node.get("class_type")) in kinds for node in found):
            return request
        for node in found:
            inputs = node.get("inputs")
            if not isinstance(inputs, dict):
                # The host's worker looks for inputs in every node, and ends for good where there are none.
                inputs = node["inputs"] = {}
            for name, kind in kinds.get(str(node.get("class_type")), {}).items():
                problem = _problem(inputs.get(name), kind)
                if problem:
                    inputs[name] = problem
        return request

    return handler


def _number_inputs(node: Any) -> Mapping[str, str]:
    return {one.id: one.get_io_type() for one in node.GET_SCHEMA().inputs if one.get_io_type() in NUMBERS}


def _problem(value: Any, kind: str) -> str:
    """What is wrong with a value, in words that are no number; "" when nothing is, or when it is a link or a text."""
    if isinstance(value, bool):
        return f"{str(value).lower()} is not a number"
    if not isinstance(value, float):
        return ""
    if not math.isfinite(value):
        return f"{value} is not finite"
    return f"{value} is not a whole number" if kind == "INT" and not value.is_integer() else ""
