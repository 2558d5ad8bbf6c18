"""The convolutional VQ tokenizer of LlamaGen (arXiv 2406.06525), which Tar uses too: VQ-16 and VQ-8.

Written from the architecture's facts. The names of the modules are those of the released files, so that a state dict
loads as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.upsample_pool import nearest_code

GROUPS = 32


@dataclass(frozen=True)
class VQConfig:
    """Sizes of a VQ tokenizer: `channels` by level from the image inwards, each level but the last halves the side."""

    codebook_size: int = 16384
    code_dim: int = 8
    z_channels: int = 256
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    encoder_blocks: int = 2
    decoder_blocks: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or any(c % GROUPS for c in self.channels):
            raise ValueError(f"channels must be multiples of {GROUPS}, got {list(self.channels)}")

    @property
    def patch(self) -> int:
        """Pixels a token side."""
        return int(2 ** (len(self.channels) - 1))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VQConfig:
        return cls(**{**values, "channels": tuple(values["channels"])})

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "channels": list(self.channels)}


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut, which is pointwise where the channels change."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(into, out, 1) if into != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Self-attention over all pixels, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        o = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(o.reshape(x.shape))


class Downsample(nn.Module):
    """Half the side: a 3x3 convolution of stride 2 over an image padded at the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: repeated pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, with attention behind each if asked, and what leads to the next resolution."""

    def __init__(self, into: int, out: int, blocks: int, attention: bool, leave: dict[str, nn.Module]) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResnetBlock(into if i == 0 else out, out) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(out) for _ in range(blocks if attention else 0))
        for name, module in leave.items():
            self.add_module(name, module)
        self.leave = list(leave)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in self.leave:
            x = self.get_submodule(name)(x)
        return x


def middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResnetBlock(channels, channels), AttnBlock(channels), ResnetBlock(channels, channels)])


class Half(nn.Module):
    """Encoder or decoder: a convolution, the parts in order, and a normalised convolution."""

    def __init__(self, into: int, first: int, last: int, out: int, levels: Iterable[Level], width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(into, first, 3, padding=1)
        self.conv_blocks = nn.ModuleList(levels)
        self.mid = middle(width)
        self.norm_out = norm(last)
        self.conv_out = nn.Conv2d(last, out, 3, padding=1)

    def run(self, x: Tensor, parts: Iterable[nn.Module]) -> Tensor:
        x = self.conv_in(x)
        for part in parts:
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(Half):
    """Images [B, 3, H, W] -> [B, z_channels, H / patch, W / patch]."""

    def __init__(self, c: VQConfig) -> None:
        widths, last = c.channels, len(c.channels) - 1
        levels = (
            Level(
                widths[max(0, i - 1)],
                width,
                c.encoder_blocks,
                i == last,
                {} if i == last else {"downsample": Downsample(width)},
            )
            for i, width in enumerate(widths)
        )
        super().__init__(3, widths[0], widths[-1], c.z_channels, levels, widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, [*self.conv_blocks, *self.mid])


class Decoder(Half):
    """[B, z_channels, h, w] -> images [B, 3, h * patch, w * patch]."""

    def __init__(self, c: VQConfig) -> None:
        widths, last = c.channels[::-1], len(c.channels) - 1
        levels = (
            Level(
                widths[max(0, i - 1)],
                width,
                c.decoder_blocks,
                i == 0,
                {} if i == last else {"upsample": Upsample(width)},
            )
            for i, width in enumerate(widths)
        )
        super().__init__(c.z_channels, widths[0], widths[-1], 3, levels, widths[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, [*self.mid, *self.conv_blocks])


class Codebook(nn.Module):
    """Holds the raw rows under the name that files give them."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)


class VQ(nn.Module):
    """VQ tokenizer with l2-normalised codes; the same interface as the bundled `Tokenizer`."""

    config_class = VQConfig

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize_rows: tuple[int, Tensor] | None = None
        self.quantize = Codebook(config.codebook_size, config.code_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    @property
    def codebook(self) -> Tensor:
        """Unit-length codes float32 [V, code_dim]; the weights do not change once loaded."""
        rows = self.quantize.embedding.weight
        key = rows.data_ptr()
        if self.quantize_rows is None or self.quantize_rows[0] != key:
            # Kept for training as well, which may not use what was made in inference mode.
            with torch.inference_mode(False):
                self.quantize_rows = (key, F.normalize(rows.detach().float(), dim=-1))
        return self.quantize_rows[1]

    def latents(self, image: Tensor) -> Tensor:
        """Unit-length encoder outputs [B, h, w, code_dim] of images [B, 3, H, W] in [-1, 1]."""
        z = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype)))
        return F.normalize(z.permute(0, 2, 3, 1).float(), dim=-1)

    def encode(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], sides multiples of `patch` -> int64 indices [B, h, w]."""
        patch = self.config.patch
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % patch or image.shape[3] % patch:
            raise ValueError(
                f"encode takes images [B, 3, H, W] with sides that are multiples of {patch}, got {tuple(image.shape)}"
            )
        return nearest_code(self.latents(image), self.codebook)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Code vectors [B, h, w, code_dim] -> images [B, 3, H, W], not clipped."""
        z = z.permute(0, 3, 1, 2).to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(z)).float()

    def decode(self, indices: Tensor) -> Tensor:
        """Indices [B, h, w] -> images [B, 3, H, W], about [-1, 1]; not clipped, as the reference leaves them."""
        return self.decode_latents(self.codebook[indices])
