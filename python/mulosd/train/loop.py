"""The one training loop: resumable, deterministic by seed, EMA, bf16, progress on screen."""

from __future__ import annotations

import contextlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.atomic import append_line
from ..engine.paths import expanded
from ..screen import Screen
from .checkpoint import fitting, read, write


def processors() -> int:
    """Processors that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    The learning rate warms up over `warmup` steps, stays, and falls linearly to zero over the last `decay` steps, so
    that a run can be prolonged by raising `steps` before the decay begins.

    Every `validate_every` steps (0: never) the loss of the averaged weights on held-out images is taken, and the best
    weights so far are kept. After `patience` validations without a better one training ends (0: it never does).
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100
    decay: int = 500
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.97)
    clip: float = 1.0
    ema: float = 0.999
    muon_lr: float = 0.0
    precision: str = "bf16"
    log_every: int = 20
    save_every: int = 500
    validate_every: int = 0
    patience: int = 0
    threads: int = field(default_factory=processors)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', got {self.precision!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.validate_every < 0 or self.patience < 0 or (self.patience and not self.validate_every):
            raise ValueError(
                f"patience counts validations: set validate_every, and neither below 0, got {self.validate_every} "
                f"steps and a patience of {self.patience}"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        up = min(1.0, (step + 1) / max(1, self.warmup))
        down = min(1.0, (self.steps - step) / max(1, self.decay))
        return max(0.0, min(up, down))


class Task(ABC):
    """What a training command supplies to the loop: a module, and the loss of a batch."""

    module: nn.Module

    @abstractmethod
    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch drawn with `rng`, and figures to log."""

    def validate(self, device: torch.device) -> dict[str, float]:
        """Figures on held-out images, the same ones every time; `loss` chooses the best weights."""
        raise ValueError(f"{type(self).__name__} has no held-out images: leave validate_every out of its loop")

    def after_step(self, step: int) -> None:  # noqa: B027 - most tasks have nothing to do
        """Anything to do after the optimiser's step."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond the module and the optimiser."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - most tasks have none
        """Put back what `state` gave."""


def optimizers(module: nn.Module, config: LoopConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """AdamW, and Muon for the matrices of transformer blocks when `muon_lr` is set; each with its peak rate."""
    muon = [
        p
        for n, p in module.named_parameters()
        if config.muon_lr > 0 and p.requires_grad and p.dim() == 2 and "blocks." in n
    ]
    taken = {id(p) for p in muon}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    result: list[tuple[torch.optim.Optimizer, float]] = []
    if rest:
        adamw = torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        result.append((adamw, config.lr))
    if muon:
        result.append((torch.optim.Muon(muon, lr=config.muon_lr, weight_decay=config.weight_decay), config.muon_lr))
    return result


def average(target: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move the running average of every floating tensor towards the module's; copy the others."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                target[name].lerp_(value.to(target[name].dtype), 1 - decay)
            else:
                target[name].copy_(value)


@contextlib.contextmanager
def ema_weights(module: nn.Module, ema: dict[str, Tensor]) -> Iterator[None]:
    """Run a block with the averaged weights in the module, then put its own back."""
    own = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(ema)
    try:
        yield
    finally:
        module.load_state_dict(own)


@dataclass(frozen=True)
class Best:
    """The averaged weights of the step whose held-out loss was the lowest."""

    ema: dict[str, Tensor]
    step: int
    loss: float


def train(task: Task, config: LoopConfig, run: Path, *, seed: int, name: str, device: str = "cpu") -> dict[str, Tensor]:
    """Train `task.module` and return its averaged weights; resumes from `run`/NAME.pt when that exists.

    With validation the weights are those of the best held-out loss.

    The batch of step i depends on (seed, i) alone, so that an interrupted run goes on as if it had not been.
    """
    with processor(config.threads):
        return run_steps(task, config, run, seed=seed, name=name, device=device)


@contextlib.contextmanager
def processor(threads: int) -> Iterator[None]:
    """So many threads, and no denormal numbers: averages of vanishing gradients become such, which slow a CPU down many
    times. Afterwards both are as they were."""
    before, flushed = torch.get_num_threads(), not torch.tensor([1e-310], dtype=torch.float64).mul(0.5).any()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushed)


def run_steps(task: Task, config: LoopConfig, run: Path, *, seed: int, name: str, device: str) -> dict[str, Tensor]:
    """What `train` does with the processor set up for it."""
    run = expanded(run)
    run.mkdir(parents=True, exist_ok=True)
    where = torch.device(device)
    module = task.module.to(where)
    steppers = optimizers(module, config)
    ema = {k: v.detach().clone() for k, v in module.state_dict().items()}
    checkpoint = run / f"{name}.pt"
    start = 0
    best: Best | None = None
    console = Screen()
    if checkpoint.exists():
        state = read(checkpoint, where)
        with fitting(checkpoint):
            module.load_state_dict(state["module"])
            ema = {k: state["ema"][k] for k in ema}
            for (stepper, _), values in zip(steppers, state["optimizers"], strict=True):
                stepper.load_state_dict(values)
            task.load_state(state.get("task", {}))
            start = state["step"]
            best = Best(**state["best"]) if state.get("best") and config.validate_every else None
        console.print(f"{name}: resuming at step {start} from {checkpoint}")
    log = run / f"{name}.jsonl"
    console.print(f"{name}: {sum(p.numel() for p in module.parameters() if p.requires_grad):,} parameters")
    begun, seen = time.perf_counter(), start

    def save(step: int) -> None:
        write(
            {
                "module": module.state_dict(),
                "ema": ema,
                "optimizers": [s.state_dict() for s, _ in steppers],
                "task": task.state(),
                "step": step,
                "best": vars(best) if best else None,
            },
            checkpoint,
        )

    def validate(step: int) -> Best:
        half = torch.autocast(where.type, torch.bfloat16, enabled=config.precision == "bf16")
        with ema_weights(module, ema), torch.no_grad(), half:
            found = task.validate(where)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in found.items())
        console.print(f"{name} {step}/{config.steps}  held out: {shown}")
        append_line(log, json.dumps({"step": step, **{f"held_out_{k}": v for k, v in found.items()}}))
        if best is not None and not found["loss"] < best.loss:
            return best
        return Best({k: v.clone() for k, v in ema.items()}, step, found["loss"])

    def given_up(step: int) -> bool:
        return best is not None and 0 < config.patience * config.validate_every <= step - best.step

    module.train()
    figures: dict[str, float] = {}
    for step in range(start, config.steps):
        if given_up(step):
            console.print(f"{name}: no better held-out loss since step {best.step if best else 0}; done")
            break
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(int(rng.integers(2**62)))
        for stepper, peak in steppers:
            for group in stepper.param_groups:
                group["lr"] = peak * config.rate(step)
            stepper.zero_grad(set_to_none=True)
        with torch.autocast(where.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, logged = task.loss(rng, step, where)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        if not torch.isfinite(norm):
            raise RuntimeError(f"{name}: the gradient is not finite at step {step}; lower lr or use precision fp32")
        for stepper, _ in steppers:
            stepper.step()
        task.after_step(step)
        average(ema, module, min(config.ema, (step + 1) / (step + 10)))
        for key, value in {"loss": loss.item(), **logged}.items():
            figures[key] = value if key not in figures else figures[key] + 0.1 * (value - figures[key])
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            speed = (step + 1 - seen) / (time.perf_counter() - begun)
            left = (config.steps - step - 1) / max(speed, 1e-9)
            shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
            console.print(f"{name} {step + 1}/{config.steps}  {shown}  {speed:.2f} steps/s  {left / 60:.1f} min left")
            append_line(log, json.dumps({"step": step + 1, "steps_per_s": speed, **figures}))
            begun, seen = time.perf_counter(), step + 1
        if config.validate_every and ((step + 1) % config.validate_every == 0 or step + 1 == config.steps):
            best = validate(step + 1)
            begun, seen = time.perf_counter(), step + 1
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps or given_up(step + 1):
            save(step + 1)
    return ema if best is None else best.ema
