"""The text encoder of a diffusers model folder, with learned token embeddings inside a prompt.

As in the authors' code and in ComfyUI: the embedding of the placeholder is replaced, what follows moves to the right,
and the context is the last layer behind the final normalisation. Emphasis with parentheses is ComfyUI's and not known
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning.template import DEFAULT_PLACEHOLDER, Template, parse_template, spaced
from ..errors import BundleError, InputError
from ..identity import text_encoder_fingerprint
from ..weights import read_state
from .bert_words import bert_words
from .diffusers import WANTED, check_size, read_config
from .ldm_bert import HEAD_WIDTH, BertShape, LdmBert, load_bert, original_bert_weights

_HOST_SYNTAX = re.compile(r"(?<!\\)[()]|embedding:")


class DiffusersTextEncoder:
    """A text encoder, CLIP's or text2img-large's, and its tokenizer; it is frozen and computes in float32."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device | str = "cpu") -> None:
        """model: ``CLIPTextModel`` of transformers or ``LdmBert``; tokenizer: ``CLIPTokenizer`` or ``BertWords``."""
        self.model = nn.Module.to(model, device, torch.float32).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.room = model.shape.room if isinstance(model, LdmBert) else int(model.config.max_position_embeddings)
        """Tokens of a window, start and end counted (77 for CLIP)."""
        self._end = int(tokenizer.eos_token_id)
        padding = tokenizer.pad_token_id
        self._padding = self._end if padding is None else int(padding)
        self._embedding: nn.Embedding = model.get_input_embeddings()

    @property
    def width(self) -> int:
        """Width of a token embedding, and of the context (768 for Stable Diffusion 1.5)."""
        return int(self._embedding.weight.shape[-1])

    def fingerprint(self, like: str = "") -> str:
        """The same text as ComfyUI gives for the same text encoder."""
        return text_encoder_fingerprint(self.model.state_dict(), like)

    def adaptation(self) -> str:
        """Nothing: LoRAs of text encoders are not applied here."""
        return ""

    def words(self, text: str) -> Tensor:
        """The encoder's own token embeddings [n, width] of a text. Raises InputError for a text without words."""
        ids = self._ids(text)[1:-1]
        if not ids:
            raise InputError(f"text: '{text}' holds no words. Give at least one.")
        return self._embedding.weight.detach()[torch.tensor(ids, device=self.device)].float()

    def caption(self, text: str) -> Tensor:
        """The context [1, room, width] of a text. Raises InputError when it does not fit into a window."""
        with torch.no_grad():
            return self._encode(self._window(text)[None])

    def parse(self, template: str, placeholder: str = DEFAULT_PLACEHOLDER) -> Template:
        """A prompt with the placeholder once. Raises InputError that says what is wrong."""
        own = self._ids(placeholder)[1:-1]
        ids = self._ids(spaced(template, placeholder))
        windows = [ids[start : start + self.room] for start in range(0, len(ids), self.room)]
        windows[-1] += [self._padding] * (self.room - len(windows[-1]))
        weighted = [[(token, 1.0) for token in window] for window in windows]
        return parse_template(template, weighted, own, self._end)

    def contexts(self, template: Template, rows: Tensor) -> Tensor:
        """Context [B, room, width] of ``rows`` [B, n, width], each in place of the template's placeholder.

        Keeps gradients. Raises InputError when they do not fit.
        """
        start, count = len(template.before), rows.shape[1]
        window = template.fill(rows[0])
        # What stands where the rows go is replaced behind the table; any token will do.
        ids = torch.tensor([token if isinstance(token, int) else self._end for token, _ in window], device=self.device)

        def replace(_: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            return torch.cat([embedded[:, :start], rows.to(embedded), embedded[:, start + count :]], dim=1)

        hook = self._embedding.register_forward_hook(replace)
        try:
            return self._encode(ids.expand(len(rows), -1))
        finally:
            hook.remove()

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """Gradients flow through the frozen weights to the embeddings."""
        with torch.inference_mode(False), torch.enable_grad():
            yield

    def _encode(self, ids: Tensor) -> Tensor:
        # No mask over the padding: Stable Diffusion was trained to see it.
        states: Tensor = self.model(input_ids=ids).last_hidden_state
        return states.float()

    def _window(self, text: str) -> Tensor:
        ids = self._ids(text)
        if len(ids) > self.room:
            raise InputError(f"text: '{text}' takes {len(ids)} tokens, there is room for {self.room}. Shorten it.")
        return torch.tensor(ids + [self._padding] * (self.room - len(ids)), device=self.device)

    def _ids(self, text: str) -> list[int]:
        """Tokens of a text with start and end."""
        if found := _HOST_SYNTAX.search(text):
            raise InputError(
                f"text: '{text}' holds {found[0]!r}, which only ComfyUI understands. Leave it "
                "out, or write \\( and \\) for parentheses."
            )
        plain = text.replace("\\(", "(").replace("\\)", ")")
        return [int(token) for token in self.tokenizer(plain, truncation=False)["input_ids"]]


def load_text_encoder(folder: Path, device: torch.device | str = "cpu") -> DiffusersTextEncoder:
    """Load ``text_encoder`` and ``tokenizer`` of a local model folder.

    In a folder of LDMTextToImagePipeline it is ``bert``, whose vocabulary is ``tokenizer/vocab.txt``. Raises
    InputError that says what is missing, and for a text encoder that is neither CLIP's nor this one.
    """
    if (Path(folder) / "bert").is_dir() and not (Path(folder) / "text_encoder").is_dir():
        return _load_ldm_bert(Path(folder), device)
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise InputError("text encoder: it needs the package transformers. Install it, for example by pip.") from error

    folder = Path(folder)
    config = read_config(folder, "text_encoder")
    kinds = [str(kind) for kind in config.get("architectures") or ["CLIPTextModel"]]
    if not any(kind.startswith("CLIPText") for kind in kinds):
        raise InputError(f"model: its text encoder is {', '.join(kinds)}, supported is CLIPTextModel. {WANTED}.")
    if not (folder / "tokenizer").is_dir():
        raise InputError(f"model: {folder} has a text_encoder but no tokenizer folder. {WANTED}.")
    weights = folder / "text_encoder" / "model.safetensors"
    variant = None
    if not weights.is_file() and weights.with_name("model.fp16.safetensors").is_file():
        variant = "fp16"
    elif not weights.is_file():
        raise InputError(f"model: {weights} is missing; weights in other formats are not read. {WANTED}.")
    check_size(folder / "text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**config)))
    try:
        # Loaded in inference mode the weights could never be differentiated through.
        with torch.inference_mode(False):
            model = CLIPTextModel.from_pretrained(
                str(folder / "text_encoder"),
                variant=variant,
                local_files_only=True,
                use_safetensors=True,
            )
            tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    except Exception as error:  # damaged files make the library raise almost anything
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"model: the text encoder in {folder} cannot be loaded ({reason}). Use another copy."
        ) from error
    return DiffusersTextEncoder(model, tokenizer, device)


def _load_ldm_bert(folder: Path, device: torch.device | str) -> DiffusersTextEncoder:
    config = read_config(folder, "bert")
    weights = [folder / "bert" / name for name in ("model.safetensors", "pytorch_model.bin")]
    path = next((path for path in weights if path.is_file()), None)
    if path is None:
        raise InputError(f"model: {weights[0]} is missing, or {weights[1].name} beside it. Use another copy.")
    try:
        shape = BertShape(
            width=int(config["d_model"]),
            depth=int(config["encoder_layers"]),
            heads=int(config["encoder_attention_heads"]),
            words=int(config["vocab_size"]),
            room=int(config["max_position_embeddings"]),
            hidden=int(config["encoder_ffn_dim"]),
            head_width=int(config.get("head_dim", HEAD_WIDTH)),
        )
        with torch.inference_mode(False):
            model = load_bert(path, original_bert_weights(read_state(path)), shape)
    except (BundleError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"model: the text encoder in {folder} cannot be loaded: {error}") from error
    return DiffusersTextEncoder(model, bert_words([folder / "tokenizer"]), device)
