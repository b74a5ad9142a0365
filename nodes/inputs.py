"""Node inputs made of the core's settings classes, so that names, ranges and texts are written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..anomalydiffusion_core.options import Declared, declared
from ..anomalydiffusion_core.sampling.sampler import SamplingSettings
from .host.sampler import SAMPLERS, SCHEDULERS
from .host.versions import as_advanced

KINDS: dict[type, Any] = {bool: io.Boolean, int: io.Int, float: io.Float}
"""Type of an option -> kind of input; everything else is a text."""


def inputs_of(
    settings: type,
    names: Sequence[str] = (),
    *,
    optional: Sequence[str] | bool = (),
    randomize: Sequence[str] = (),
    advanced: Sequence[str] | bool = (),
    **changes: dict[str, Any],
) -> list[io.Input]:
    """Inputs for the options of a settings class, all of them or those called ``names``, in that order.

    optional: names that need not be given, or True for all. randomize: seeds that the page changes after each run.
    advanced: names that the page shows on demand only, or True for all.
    changes: by name, what differs for this node, such as ``steps={"default": 200}``.
    """
    known = declared(settings)
    chosen = names or list(known)
    unknown = (set(chosen) | set(changes)) - set(known)
    if unknown:
        raise ValueError(f"{settings.__name__} has no options {', '.join(sorted(unknown))}")
    made = []
    for name in chosen:
        more = dict(changes.get(name, {}))
        if optional is True or (optional and name in optional):
            more["optional"] = True
        if name in randomize:
            more["control_after_generate"] = True
        one = _input(known[name], more)
        made.append(as_advanced(one) if advanced is True or (advanced and name in advanced) else one)
    return made


def folder_input(default: str) -> io.Input:
    """The name of a numbered folder of results."""
    text = "Name of the folder inside ComfyUI's output folder; the number increases with each run."
    return io.String.Input("folder", default=f"anomalydiffusion/{default}", tooltip=text)


def sampling_inputs(cfg: float, seed_use: str) -> list[io.Input]:
    """Inputs of ComfyUI's KSampler, in its order, that both samplers of this extension share."""
    return inputs_of(
        SamplingSettings,
        ("seed", "steps", "cfg", "sampler_name", "scheduler", "batch_size"),
        randomize=["seed"],
        advanced=["sampler_name", "scheduler", "batch_size"],
        seed={"tooltip": seed_use},
        cfg={"default": cfg, "round": 0.01},
        sampler_name={"options": SAMPLERS},
        scheduler={"options": SCHEDULERS},
    )


def defect_type_input(
    tooltip: str = "The type as object/defect. Empty takes the only type of the data set.", optional: bool = False
) -> io.Input:
    """The name of a defect type."""
    return io.String.Input("defect_type", default="", optional=optional, tooltip=tooltip)


def _input(known: Declared, more: dict[str, Any]) -> io.Input:
    own = known.option
    values: dict[str, Any] = {"tooltip": own.help}
    if known.default is not None:
        values["default"] = known.default
    if own.choices or "options" in more:
        return io.Combo.Input(known.name, **{**values, "options": list(own.choices), **more})
    kind = KINDS.get(known.type, io.String)
    if kind in (io.Int, io.Float):
        cast = int if kind is io.Int else float
        values |= {key: cast(value) for key in ("min", "max", "step") if (value := getattr(own, key)) is not None}
        if kind is io.Float and own.exact:
            values["round"] = False
    if kind is io.String and own.multiline:
        values["multiline"] = True
    return kind.Input(known.name, **{**values, **more})
