"""Noise predictor of the demo prior: the latent diffusion U-Net, with the parameter names of the original release.

Names and arithmetic agree with `UNetModel` of the latent diffusion repository (and so of ComfyUI), restricted to what
the demo prior uses: convolutional projections, one transformer block per attention site, no class labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Stands in for one cross-attention call: (query [B, h*w, C], key, value [B, L, C], heads, h, w) -> [B, h*w, C].
CrossAttention = Callable[[Tensor, Tensor, Tensor, int, int, int], Tensor]


_MOST, _MOST_LEVELS = 8192, 8
"""Limits of what a stored file may ask for."""


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network; `attention` says which levels have a transformer (the middle always has one)."""

    in_channels: int = 4
    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 2)
    attention: tuple[int, ...] = (0, 1, 1)
    num_heads: int = 4
    context_dim: int = 128

    def host_arguments(self) -> dict[str, object]:
        """Keyword arguments that make ComfyUI's `UNetModel` build the same network."""
        return {
            "image_size": 32,
            "in_channels": self.in_channels,
            "out_channels": self.in_channels,
            "model_channels": self.model_channels,
            "num_res_blocks": [1] * len(self.channel_mult),
            "channel_mult": list(self.channel_mult),
            "transformer_depth": list(self.attention),
            "transformer_depth_output": [depth for depth in self.attention for _ in range(2)],
            "transformer_depth_middle": 1,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": False,
            "context_dim": self.context_dim,
            "num_heads": self.num_heads,
            "num_head_channels": -1,
            "legacy": False,
            "use_checkpoint": False,
            "adm_in_channels": None,
        }

    @staticmethod
    def from_host_arguments(arguments: dict[str, object]) -> UNetConfig:
        """The inverse of `host_arguments`, for reading a stored file."""
        config = UNetConfig(
            in_channels=int(str(arguments["in_channels"])),
            model_channels=int(str(arguments["model_channels"])),
            channel_mult=_integers(arguments["channel_mult"]),
            attention=_integers(arguments["transformer_depth"]),
            num_heads=int(str(arguments["num_heads"])),
            context_dim=int(str(arguments["context_dim"])),
        )
        numbers = (config.in_channels, config.model_channels, config.num_heads, config.context_dim)
        if not all(1 <= n <= _MOST for n in (*numbers, *config.channel_mult)) or not _fits(config):
            raise ValueError(f"{asdict(config)} is out of range")
        expected = config.host_arguments()
        differing = sorted(key for key in expected if arguments.get(key) != expected[key])
        if differing:
            raise ValueError(f"architecture: {differing} differ from what this network can be ({asdict(config)}).")
        return config


def _fits(config: UNetConfig) -> bool:
    levels = len(config.channel_mult)
    return 1 <= levels == len(config.attention) <= _MOST_LEVELS and all(0 <= n <= 16 for n in config.attention)


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence):
        raise ValueError(f"{value!r} is no list")
    return tuple(int(item) for item in value)


class UNet(nn.Module):
    """eps(x_t [B, 4, h, w], t [B], context [B, L, d]) -> [B, 4, h, w]; h and w multiples of 2^(levels - 1)."""

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        channels = width
        skips = [width]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(config.in_channels, width, 3, padding=1)])])
        for level, (mult, attends) in enumerate(zip(config.channel_mult, config.attention, strict=True)):
            self.input_blocks.append(_stage(channels, mult * width, embedding, attends, config))
            channels = mult * width
            skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([_Downsample(channels)]))
                skips.append(channels)
        self.middle_block = nn.ModuleList(
            [
                _ResBlock(channels, channels, embedding),
                _transformer(channels, config),
                _ResBlock(channels, channels, embedding),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(config.channel_mult))):
            target = config.channel_mult[level] * width
            for index in range(2):
                stage = _stage(channels + skips.pop(), target, embedding, config.attention[level], config)
                channels = target
                if level and index == 1:
                    stage.append(_Upsample(channels))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, config.in_channels, 3, padding=1))
        last = self.out[2]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, attend: CrossAttention | None = None) -> Tensor:
        """Noise [B, C, H, W] predicted for latents x at integer timesteps t [B] with context [B, N, width]."""
        embedding = self.time_embed(_timestep_embedding(t, self.config.model_channels))
        skips = []
        for stage in self.input_blocks:
            x = _run(stage, x, embedding, context, attend)
            skips.append(x)
        x = _run(self.middle_block, x, embedding, context, attend)
        for stage in self.output_blocks:
            x = torch.cat([x, skips.pop()], 1)
            # An odd side was halved upwards; the next skip connection has the size to return to.
            x = _run(stage, x, embedding, context, attend, skips[-1].shape[2:] if skips else None)
        return self.out(x)


def _run(
    stage: nn.Module,
    x: Tensor,
    embedding: Tensor,
    context: Tensor,
    attend: CrossAttention | None,
    enlarged: Sequence[int] | None = None,
) -> Tensor:
    for module in stage.children():
        if isinstance(module, _ResBlock):
            x = module(x, embedding)
        elif isinstance(module, _SpatialTransformer):
            x = module(x, context, attend)
        elif isinstance(module, _Upsample):
            x = module(x, enlarged)
        else:
            x = module(x)
    return x


def _stage(inputs: int, outputs: int, embedding: int, attends: int, config: UNetConfig) -> nn.ModuleList:
    modules: list[nn.Module] = [_ResBlock(inputs, outputs, embedding)]
    if attends:
        modules.append(_transformer(outputs, config))
    return nn.ModuleList(modules)


def _transformer(channels: int, config: UNetConfig) -> _SpatialTransformer:
    return _SpatialTransformer(channels, config.num_heads, config.context_dim)


class _ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        # The unused slot is the dropout of the original release; it keeps the parameter names.
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.out_layers = nn.Sequential(_norm(outputs), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class _SpatialTransformer(nn.Module):
    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(channels, heads, context_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x: Tensor, context: Tensor, attend: CrossAttention | None) -> Tensor:
        height, width = x.shape[2:]
        hidden = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            hidden = block(hidden, context, (height, width), attend)
        return x + self.proj_out(hidden.transpose(1, 2).unflatten(2, (height, width)))


class _TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = _Attention(channels, channels, heads)
        self.ff = _FeedForward(channels)
        self.attn2 = _Attention(channels, context_dim, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, shape: tuple[int, int], attend: CrossAttention | None) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed, shape, None)
        x = x + self.attn2(self.norm2(x), context, shape, attend)
        return x + self.ff(self.norm3(x))


class _Attention(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x: Tensor, context: Tensor, shape: tuple[int, int], attend: CrossAttention | None) -> Tensor:
        query, key, value = self.to_q(x), self.to_k(context), self.to_v(context)
        if attend is not None:
            return self.to_out(attend(query, key, value, self.heads, *shape))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        return self.to_out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _GEGLU(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * functional.gelu(gate)


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        wanted = [2 * side for side in x.shape[2:]] if size is None else list(size)
        return self.conv(functional.interpolate(x, size=wanted, mode="nearest"))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _timestep_embedding(t: Tensor, width: int) -> Tensor:
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], 1)
