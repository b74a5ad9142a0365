"""Which base model something was learned on, and with which LoRA: the same answer in every number format and host.

A base model is told apart by the signs of a fixed sample of its weights. Rounding to float16, bfloat16 or float8 never
changes a sign, so that one checkpoint is one model however it is stored and loaded, while a fine-tuned one differs: a
change of one percent turns thousands of signs. Beside them counts one number of their size, the whole octaves of the
mean magnitudes of all large tensors together: rounding averages out in it. What is added to the weights, a LoRA, is
the second part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import BundleError, InputError
from .weights import read_header, read_safetensors

PREFIX = "2:"
"""Begin of a fingerprint of signs. One without it is of an older version: a hash of first values as they were stored,
which told apart the number formats of one model."""
VALUES = "values"
"""Asks for a fingerprint of values as they are stored, for content keys: another number format trains to other
numbers, and the keys of finished results stay what they were."""
SAMPLE = 16384
"""Most values that are looked at of one tensor, at equal distances."""
LARGE = 2048
"""Values of a tensor whose mean magnitude is hardly changed by rounding."""
_TEXT_PARTS = (
    # of CLIP
    "embeddings.",
    "encoder.",
    "final_layer_norm.",
    # of text2img-large
    "token_emb.",
    "pos_emb.",
    "attn_layers.",
    "norm.",
)
LORA_PREFIX = "lora:"


def _sample(value: Tensor) -> Tensor:
    flat = value.detach().flatten()
    return flat[:: max(1, -(-flat.numel() // SAMPLE))].float()


def _signs(sample: Tensor) -> bytes:
    return np.packbits(torch.signbit(sample).cpu().numpy()).tobytes()


def weights_fingerprint(weights: Mapping[str, Tensor], like: str = "") -> str:
    """Tells one model from another by names, shapes and signs of its weights; the same for every host and format.

    like: a known fingerprint, to be compared with; one of an older version, or VALUES, gets one of first values.
    """
    digest = hashlib.sha256()
    old = bool(like) and not like.startswith(PREFIX)
    octaves = 0.0
    for name, value in sorted(weights.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if old:
            digest.update(value.detach().flatten()[:8].float().cpu().numpy().tobytes())
            continue
        sample = _sample(value)
        digest.update(_signs(sample))
        if value.numel() >= LARGE:
            octaves += math.log2(max(float(sample.abs().mean(dtype=torch.float64)), 1e-30))
    digest.update(b"" if old else f"{math.floor(octaves)}".encode())
    return ("" if old else PREFIX) + digest.hexdigest()[:16]


def text_encoder_fingerprint(weights: Mapping[str, Tensor], like: str = "") -> str:
    """Tells one text encoder from another by the weights that make a context, as ``weights_fingerprint``.

    weights: under names that end as in ``text_model.encoder.layers.0.mlp.fc1.weight``; prefixes do not matter, nor do
    the projection of the pooled output and what hosts store beside it.
    """
    own: dict[str, Tensor] = {}
    for name, value in weights.items():
        short = name.rpartition("text_model.")[2].rpartition("transformer.")[2]
        if short.startswith(_TEXT_PARTS) and not short.endswith("position_ids"):
            # Older versions counted in half precision, in which ComfyUI keeps text encoders, whatever the file has.
            own[short] = value.detach().half()
    return weights_fingerprint(own, like)


class Fingerprints:
    """Both fingerprints of a base model, from its weights as they were before a LoRA was merged or a cast was made."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._own, self._old = weights_fingerprint(weights), weights_fingerprint(weights, VALUES)

    def like(self, known: str = "") -> str:
        """The one of the version that ``known`` is of."""
        return self._old if known and not known.startswith(PREFIX) else self._own


@dataclass(frozen=True)
class Addition:
    """What is added to one layer. parts: its tensors in a fixed order, None for absent ones. scale: their factor.

    kind: "lora" for ``scale * up @ down`` with the parts (up, down), else what the host calls it.
    """

    parts: Sequence[Tensor | None]
    scale: float
    kind: str = "lora"

    def digest(self) -> str:
        """The same in every number format."""
        known = [
            b"" if part is None else f"{tuple(part.shape)}".encode() + _signs(_sample(part)) for part in self.parts
        ]
        text = f"{self.kind}|{self.scale:.4g}|".encode()
        return hashlib.sha256(text + b"|".join(known)).hexdigest()


def adaptation_fingerprint(additions: Iterable[Addition]) -> str:
    """Tells what is added to a model from another such addition, with the number of layers; "" for nothing.

    Names of layers do not count, because hosts name them differently; what is added at strength 0 does not either.
    """
    digests = sorted(addition.digest() for addition in additions if addition.scale)
    if not digests:
        return ""
    return f"{LORA_PREFIX}{hashlib.sha256(''.join(digests).encode()).hexdigest()[:16]}-{len(digests)}"


def lora_fingerprint(tensors: Mapping[str, Tensor], strength: float = 1.0) -> str:
    """``adaptation_fingerprint`` of a LoRA file that is applied at ``strength``."""
    additions = []
    for name, down in tensors.items():
        if name.endswith(".lora_down.weight"):
            layer = name.removesuffix(".lora_down.weight")
            alpha = tensors.get(f"{layer}.alpha")
            scale = strength * (1.0 if alpha is None else float(alpha) / len(down))
            additions.append(Addition((tensors[f"{layer}.lora_up.weight"], down), scale))
    return adaptation_fingerprint(additions)


class Identified(Protocol):
    """A model that can tell which it is; a Denoiser is one."""

    def fingerprint(self, like: str = "") -> str:
        """As ``weights_fingerprint``, of the base model without what was added to it."""
        ...

    def adaptation(self) -> str:
        """As ``adaptation_fingerprint``, "" for a bare model."""
        ...


@dataclass(frozen=True)
class Identity:
    """The model that something was learned on.

    base: fingerprint of the base model, "" when not recorded. adaptation: that of what was added to it, "" for
    nothing, None when not recorded (bundles of older versions). name: file of the LoRA, "" when not known. strength:
    that it was applied at.
    """

    base: str = ""
    adaptation: str | None = None
    name: str = ""
    strength: float = 1.0

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Identity:
        """The one in the metadata of a bundle."""
        stored = metadata.get("adaptation")
        base = str(metadata.get("base_fingerprint") or "")
        if not isinstance(stored, Mapping):
            return cls(base)
        strength = stored.get("strength")
        name, strength = str(stored.get("name") or ""), float(strength) if isinstance(strength, (int, float)) else 1.0
        return cls(base, str(stored.get("fingerprint") or ""), name, strength)

    def metadata(self) -> dict[str, Any]:
        """Its entries in the metadata of a bundle."""
        entries: dict[str, Any] = {"base_fingerprint": self.base}
        if self.adaptation is not None:
            entries["adaptation"] = {"fingerprint": self.adaptation, "name": self.name, "strength": self.strength}
        return entries

    @property
    def lora(self) -> str:
        """What a reader calls the LoRA, "no LoRA" for none, "" when not recorded."""
        if self.adaptation is None:
            return ""
        strength = "" if self.strength == 1 else f" at strength {self.strength:g}"
        known = f"{self.name} ({self.adaptation})" if self.name else self.adaptation
        return f"the LoRA {known}{strength}" if self.adaptation else "no LoRA"


def check_identity(model: Identified, learned_on: Identity, name: str) -> None:
    """Raise InputError, naming both, unless ``model`` is the one that something was learned on, with the same LoRA.

    What is not recorded is not checked.
    """
    if learned_on.base:
        own = model.fingerprint(learned_on.base)
        if own != learned_on.base:
            raise InputError(
                f"{name}: the embedding was trained on the model {learned_on.base}, this one is {own}. Use the model "
                "it was trained on, or train it on this one."
            )
    if learned_on.adaptation is None or model.adaptation() == learned_on.adaptation:
        return
    applied = f"has the LoRA {model.adaptation()}" if model.adaptation() else "has no LoRA"
    if not learned_on.adaptation:
        advice = "Leave the LoRA out, or train on the model with it"
    else:
        advice = (
            "Apply it: in ComfyUI through Load Spatial Encoder or a LoRA loader before the sampler, on the command "
            "line with --lora"
        )
    raise InputError(f"{name}: the embedding was trained with {learned_on.lora}, this model {applied}. {advice}.")


def find_lora(paths: Iterable[Path], wanted: Identity) -> Path | None:
    """The LoRA file that something was learned with, wherever it was moved and whatever it is called now.

    The recorded name is tried first; files with another number of layers are not read.
    """
    if not wanted.adaptation:
        return None
    number = wanted.adaptation.rpartition("-")[2]
    layers = int(number) if number.isdecimal() else -1
    files = [path for path in paths if path.suffix == ".safetensors" and path.is_file()]
    for path in sorted(files, key=lambda path: (path.name != wanted.name, path.as_posix())):
        try:
            found = sum(name.endswith(".lora_down.weight") for name in read_header(path).shapes)
            if found == layers and lora_fingerprint(read_safetensors(path), wanted.strength) == wanted.adaptation:
                return path
        except (BundleError, KeyError, RuntimeError):
            continue  # not a LoRA, or a damaged one
    return None
