"""A patch discriminator (Isola et al., arXiv 1611.07004) with the hinge loss, trained beside what it judges."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Critic:
    """Tells pictures from reconstructions, patch by patch; each call trains it one step first.

    Args:
        width: channels of the first layer.
        lr: its learning rate.
    """

    def __init__(self, width: int = 32, lr: float = 2e-4) -> None:
        layers: list[nn.Module] = []
        into = 3
        for out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(into, out, 4, stride=2, padding=1), nn.GroupNorm(8, out), nn.LeakyReLU(0.2)]
            into = out
        self.net = nn.Sequential(*layers, nn.Conv2d(into, 1, 3, padding=1))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, betas=(0.5, 0.9), weight_decay=0.0)

    def judge(self, image: Tensor, real: Tensor) -> Tensor:
        """Train on images [B, 3, H, W] against real ones, then return the loss of who made `image`."""
        self.net.to(image.device)
        told = torch.relu(1 - self.net(real)).mean() + torch.relu(1 + self.net(image.detach())).mean()
        self.optimizer.zero_grad(set_to_none=True)
        told.backward()
        self.optimizer.step()
        # A copy of the weights: the next call changes them in place before the caller's backward pass.
        now = {k: v.detach().clone() for k, v in self.net.named_parameters()}
        judged: Tensor = torch.func.functional_call(self.net, now, (image,))
        return -judged.mean()

    def saved(self) -> dict[str, Tensor]:
        """Weights and moments."""
        moments = self.optimizer.state_dict()["state"]
        found = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        return found | {f"moment.{i}.{k}": v for i, values in moments.items() for k, v in values.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `saved` gave."""
        self.net.load_state_dict({k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("moment."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
