"""The image tokenizer of Emu3 (arXiv 2409.18869): a VQ model of video whose images are clips that stand still.

Written from the architecture's facts. The names of the modules are those of transformers' files, so that a state dict
loads as it is. An image is a clip of as many equal frames as one code spans. In space all frames are alike, so that
they are run once; in time convolutions look back alone, so that the first frame is all that an image needs of a decoded
clip.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vq import GROUPS, Downsample, Upsample, norm

# Codes that are compared with all others at a time.
CHUNK = 1024


@dataclass(frozen=True)
class Emu3VQConfig:
    """Sizes: `channels` by level from the image inwards, each level but the last halves the side; levels in `attention`
    have attention behind each of their `blocks`, of which the decoder has one more. A code spans `frames` frames."""

    codebook_size: int = 32768
    code_dim: int = 4
    z_channels: int = 4
    channels: tuple[int, ...] = (256, 512, 512, 1024)
    blocks: int = 2
    attention: tuple[int, ...] = (3,)
    heads: int = 1
    frames: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "attention", tuple(self.attention))
        if not self.channels or any(c % GROUPS for c in self.channels):
            raise ValueError(f"channels must be multiples of {GROUPS}, got {list(self.channels)}")
        if self.frames < 1 or self.frames & (self.frames - 1):
            raise ValueError(f"a code spans a power of two of frames, got {self.frames}")
        attended = {self.channels[-1], *(self.channels[i] for i in self.attention)}
        if any(c % self.heads for c in attended):
            raise ValueError(f"{self.heads} heads do not divide {sorted(attended)} channels")

    @property
    def patch(self) -> int:
        """Pixels a token side."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def halvings(self) -> int:
        """How often the frames of a clip are halved."""
        return int(math.log2(self.frames))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Emu3VQConfig:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "channels": list(self.channels), "attention": list(self.attention)}


class SpatialNorm(nn.Module):
    """A group norm whose scale and shift at each place are read from the code there."""

    def __init__(self, code_dim: int, channels: int) -> None:
        super().__init__()
        self.norm_layer = norm(channels)
        self.conv_y, self.conv_b = nn.Conv2d(code_dim, channels, 1), nn.Conv2d(code_dim, channels, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        # At the codes' own size first: a pointwise product of repeated values is the repeated product.
        scale, shift = (F.interpolate(conv(codes), size=x.shape[-2:]) for conv in (self.conv_y, self.conv_b))
        return self.norm_layer(x) * scale + shift


class Normed(nn.Module):
    """What encoder and decoder share: norms that know the codes, where there are any."""

    code_dim: int

    def make(self, channels: int) -> nn.Module:
        return SpatialNorm(self.code_dim, channels) if self.code_dim else norm(channels)

    @staticmethod
    def normed(layer: nn.Module, x: Tensor, codes: Tensor | None) -> Tensor:
        out: Tensor = layer(x) if codes is None else layer(x, codes)
        return out


class Residual(Normed):
    """Two normalised 3x3 convolutions beside a shortcut, which is pointwise where the channels change."""

    def __init__(self, into: int, out: int, code_dim: int) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.norm1, self.conv1 = self.make(into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = self.make(out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(into, out, 1) if into != out else None

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        y = self.conv1(F.silu(self.normed(self.norm1, x, codes)))
        y = self.conv2(F.silu(self.normed(self.norm2, y, codes)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Self-attention over all places of a map [B, C, H, W]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        q, k, v = (
            layer(flat).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out_proj(out).transpose(1, 2).reshape(x.shape)


class Level(Normed):
    """Residual blocks of one resolution, with attention behind each if asked, and what leads to the next one."""

    def __init__(
        self, into: int, out: int, blocks: int, heads: int, code_dim: int, leave: dict[str, nn.Module]
    ) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.block = nn.ModuleList(Residual(into if i == 0 else out, out, code_dim) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out, heads) for _ in range(blocks if heads else 0))
        self.attn_norms = nn.ModuleList(self.make(out) for _ in self.attn)
        for name, module in leave.items():
            self.add_module(name, module)
        self.leave = list(leave)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, codes)
            if len(self.attn):
                x = x + self.attn[i](self.normed(self.attn_norms[i], x, codes))
        for name in self.leave:
            x = self.get_submodule(name)(x)
        return x


class Levels(nn.Module):
    """Levels from the image inwards, under the name that files give them."""

    def __init__(self, name: str, levels: list[Level]) -> None:
        super().__init__()
        self.add_module(name, nn.ModuleList(levels))
        self.name = name

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        levels = list(self.get_submodule(self.name).children())
        for level in levels if codes is None else reversed(levels):
            x = level(x, codes)
        return x


class Middle(Normed):
    """Residual, attention, residual."""

    def __init__(self, channels: int, heads: int, code_dim: int) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.block_1, self.block_2 = (Residual(channels, channels, code_dim) for _ in range(2))
        self.attn_1, self.attn_norm = Attention(channels, heads), self.make(channels)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        x = self.block_1(x, codes)
        x = x + self.attn_1(self.normed(self.attn_norm, x, codes))
        return self.block_2(x, codes)


class InTime(nn.Module):
    """A convolution of clips [B, C, T, H, W] that looks at two frames before, which are zeros in front of the first."""

    def __init__(self, into: int, out: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(into, out, kernel, stride=(stride, 1, 1))
        self.padding = (kernel[2] // 2, kernel[2] // 2, kernel[1] // 2, kernel[1] // 2, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Resampling(nn.Module):
    """Half or twice the frames; `conv` is the name of its convolution in files."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = InTime(channels, channels, (3 if up else 4, 3, 3), 1 if up else 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x.repeat_interleave(2, dim=2) if self.up else x))


class ResidualInTime(nn.Module):
    """Two batch-normalised convolutions in time and space beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm3d(channels), nn.BatchNorm3d(channels)
        self.conv1, self.conv2 = (InTime(channels, channels, (3, 3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Encoder(nn.Module):
    """Images [B, 3, H, W] -> a clip of one frame [B, z_channels, 1, H / patch, W / patch]."""

    def __init__(self, c: Emu3VQConfig) -> None:
        super().__init__()
        widths, last = c.channels, len(c.channels) - 1
        levels = [
            Level(
                widths[max(0, i - 1)], width, c.blocks, c.heads if i in c.attention else 0, 0,
                {} if i == last else {"downsample": Downsample(width)},
            )
            for i, width in enumerate(widths)
        ]  # fmt: skip
        self.frames = c.frames
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_block = Levels("down", levels)
        self.middle_block = Middle(widths[-1], c.heads, 0)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)
        self.time_conv = nn.ModuleList(Resampling(c.z_channels, up=False) for _ in range(c.halvings))
        self.time_res_stack = nn.ModuleList(ResidualInTime(c.z_channels) for _ in range(c.blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle_block(self.down_block(self.conv_in(x)))
        x = self.conv_out(F.silu(self.norm_out(x)))[:, :, None].expand(-1, -1, self.frames, -1, -1)
        for layer in (*self.time_conv, *self.time_res_stack):
            x = layer(x)
        return x


class Decoder(nn.Module):
    """Clips of one frame, of features [B, z_channels, 1, h, w] and codes [B, code_dim, 1, h, w] -> the first frame
    [B, 3, h * patch, w * patch]."""

    def __init__(self, c: Emu3VQConfig) -> None:
        super().__init__()
        widths, last = c.channels, len(c.channels) - 1
        levels = [
            Level(
                widths[min(last, i + 1)], width, c.blocks + 1, c.heads if i in c.attention else 0, c.code_dim,
                {} if i == 0 else {"upsample": Upsample(width)},
            )
            for i, width in enumerate(widths)
        ]  # fmt: skip
        self.time_res_stack = nn.ModuleList(ResidualInTime(c.z_channels) for _ in range(c.blocks))
        self.time_conv = nn.ModuleList(Resampling(c.z_channels, up=True) for _ in range(c.halvings))
        self.conv_in = nn.Conv2d(c.z_channels, widths[-1], 3, padding=1)
        self.middle_block = Middle(widths[-1], c.heads, c.code_dim)
        self.up_block = Levels("up", levels)
        self.norm_out = SpatialNorm(c.code_dim, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        both = torch.cat([x, codes])
        for layer in self.time_res_stack:
            both = layer(both)
        for layer in self.time_conv:
            both = layer(both)[:, :, :1]  # no later frame has a part in the first one
        x, codes = both[:, :, 0].chunk(2)
        x = self.up_block(self.middle_block(self.conv_in(x), codes), codes)
        return self.conv_out(F.silu(self.norm_out(x, codes)))


class Codebook(nn.Module):
    """Holds the codes under the name that files give them."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)


class Emu3VQ(nn.Module):
    """VQ tokenizer whose codes are compared by their distance, not by angle."""

    config_class = Emu3VQConfig

    def __init__(self, config: Emu3VQConfig) -> None:
        super().__init__()
        if config.z_channels != config.code_dim:
            raise ValueError(
                f"features and codes go through the same layers in time: {config.z_channels} channels and codes of "
                f"{config.code_dim} numbers do not fit"
            )
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.code_dim)
        self.quant_conv = InTime(config.z_channels, config.code_dim, (3, 1, 1))
        self.post_quant_conv = InTime(config.code_dim, config.z_channels, (3, 1, 1))

    @property
    def codebook(self) -> Tensor:
        """Codes float32 [V, code_dim], of any length."""
        return self.quantize.embedding.weight.float()

    def latents(self, image: Tensor) -> Tensor:
        """Encoder outputs [B, h, w, code_dim] of images [B, 3, H, W] in [-1, 1]."""
        found = self.quant_conv(self.encoder(image.to(self.quantize.embedding.weight.dtype)))
        return found[:, :, 0].permute(0, 2, 3, 1).float()

    def nearest(self, z: Tensor, k: int) -> Tensor:
        """The k nearest codes of vectors [N, code_dim], int64 [N, k]; the lower index where distances are equal."""
        codes = self.codebook
        found = []
        for part in z.split(CHUNK):
            distance = (codes**2).sum(dim=1) - 2 * part @ codes.t()
            found.append(distance.argmin(dim=1)[:, None] if k == 1 else distance.topk(k, largest=False).indices)
        return torch.cat(found)

    def neighbours(self, k: int) -> Tensor:
        """Table int32 [V, k] of each code's nearest codes, itself first."""
        codes = self.codebook
        if not 1 <= k <= len(codes):
            raise ValueError(f"k must be 1 to {len(codes)}, got {k}")
        found = self.nearest(codes, min(k + 1, len(codes))) if k > 1 else codes.new_empty(len(codes), 0).long()
        itself = torch.arange(len(codes), device=codes.device)[:, None]
        # Itself moves to the front; where an equal code stands for it, the last one goes.
        behind = (found == itself).to(torch.int8).argsort(dim=1, stable=True)
        return torch.cat([itself, found.gather(1, behind)[:, : k - 1]], dim=1).int()

    def encode(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], sides multiples of `patch` -> int64 indices [B, h, w]."""
        patch = self.config.patch
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % patch or image.shape[3] % patch:
            raise ValueError(
                f"encode takes images [B, 3, H, W] with sides that are multiples of {patch}, got {tuple(image.shape)}"
            )
        z = self.latents(image)
        return self.nearest(z.flatten(0, 2), 1).view(z.shape[:-1])

    def decode_latents(self, z: Tensor) -> Tensor:
        """Code vectors [B, h, w, code_dim] -> images [B, 3, H, W], not clipped."""
        codes = z.permute(0, 3, 1, 2)[:, :, None].to(self.quantize.embedding.weight.dtype)
        return self.decoder(self.post_quant_conv(codes), codes).float()

    def decode(self, indices: Tensor) -> Tensor:
        """Indices [B, h, w] -> images [B, 3, H, W], about [-1, 1]; not clipped, as the reference leaves them."""
        return self.decode_latents(self.codebook[indices])
