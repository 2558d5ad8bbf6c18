"""Training of the AR transformer, and of the text encoder of a family of phrases, on every grid of the family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.conditioning import ClassConditioner, Conditioner, PhraseConditioner
from ..engine.family import Family
from ..engine.models.tokenizer import Tokenizer
from ..engine.models.transformer import Transformer, TransformerConfig
from .checkpoint import averaged, fitting, load_averaged, part
from .config import TrainingFile
from .loop import Task
from .sources import ImageSource
from .token_pool import TokenPool
from .tokenizer import tokenizer_config, trained_here, trained_tokenizer

VALIDATION_BATCH = 8


@dataclass(frozen=True)
class Phase:
    """Up to step `until`: which grids are drawn (grid -> share) and how many images a batch holds (grid -> count)."""

    until: int
    shares: dict[int, float]
    batch: dict[int, int]


class ARTask(Task):
    """Next-token cross-entropy with condition dropout (for CFG) and a little token noise (against exposure bias).

    Args:
        model: sizes of the transformer.
        conditioner: captions to conditions; its weights, such as a text encoder, are trained along.
        tokenizer: frozen.
        source: of captioned images.
        phases: grids and batches by step.
        held_out: of the images whose cross-entropy validates.
        cond_only: train the conditioner's weights alone.
        cond_dropout: share of images whose condition is taken away.
        token_noise: share of tokens that the transformer reads wrong.
        entropy_weight: see `weights`.
        freeze_text: leave the conditioner, and the lookup by position, as the captions stage taught them. Trained
            along with the images at large steps they forget the order of the objects.
        pool: see `TokenPool`.
        validation: how many images validate, on every grid.
    """

    def __init__(
        self,
        model: TransformerConfig,
        conditioner: Conditioner,
        tokenizer: Tokenizer,
        source: ImageSource,
        phases: list[Phase],
        held_out: ImageSource | None = None,
        cond_only: bool = False,
        *,
        cond_dropout: float = 0.1,
        token_noise: float = 0.0,
        entropy_weight: float = 0.0,
        freeze_text: bool = False,
        pool: int = 0,
        validation: int = 64,
    ) -> None:
        self.conditioner, self.ar = conditioner, Transformer(model)
        self.module = nn.ModuleDict({**conditioner.weights, "ar": self.ar})
        if cond_only:
            self.ar.requires_grad_(False)
        if freeze_text:
            for module in (*conditioner.weights.values(), self.ar.position_cond):
                if module is not None:
                    module.requires_grad_(False)
        self.phases = phases
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.pool = TokenPool(source, tokenizer, pool)
        self.cond_dropout, self.token_noise = cond_dropout, token_noise
        self.entropy_weight = entropy_weight
        self.figures: dict[int, float] = {}
        # The same images every time: they are drawn once, whatever the pool of the training images.
        self.held_out = None if held_out is None else TokenPool(held_out, tokenizer, validation)

    def weights(self, logits: Tensor) -> Tensor:
        """Weights [B*n] of the positions of logits [B, n, V]: one plus `entropy_weight` times the model's entropy.

        Few positions decide what an image shows (the first token of an object), and in a plain mean over a large
        grid they drown. A weight that depends on the context alone leaves the optimum of every distribution as it is.
        """
        log_p = F.log_softmax(logits.detach().flatten(0, 1), dim=-1)
        return 1 - self.entropy_weight * (log_p.exp() * log_p).sum(dim=-1)

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        phase = next((p for p in self.phases if step < p.until), self.phases[-1])
        grids = list(phase.shares)
        share = np.asarray([phase.shares[g] for g in grids], dtype=float)
        grid = int(rng.choice(grids, p=share / share.sum()))
        self.tokenizer.to(device)
        drawn = self.pool.draw(rng, (grid,), phase.batch[grid], device)
        tokens = drawn.tokens[grid]
        dropped = torch.from_numpy(rng.random(len(tokens)) < self.cond_dropout).to(device)
        cond = dropped_condition(self.conditioner, drawn.captions, dropped)
        noisy = torch.from_numpy(rng.random(tuple(tokens.shape)) < self.token_noise).to(device)
        noise = torch.from_numpy(rng.integers(self.tokenizer.config.codebook_size, size=tuple(tokens.shape))).to(device)
        logits = self.ar(cond, torch.where(noisy, noise, tokens), grid)
        each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        weight = self.weights(logits)
        loss = (weight * each).sum() / weight.sum()
        value = float(each.detach().mean())
        old = self.figures.get(grid, value)
        self.figures[grid] = old + 0.1 * (value - old)
        return loss, {f"nll{g}": v for g, v in sorted(self.figures.items())}

    def validate(self, device: torch.device) -> dict[str, float]:
        """Cross-entropy a token by grid on held-out images with their conditions, and its mean over grids."""
        if self.held_out is None:
            return super().validate(device)
        self.tokenizer.to(device)
        found = {}
        for grid in self.ar.config.grids:
            drawn = self.held_out.all(grid, device)
            total = 0.0
            for start in range(0, len(drawn.captions), VALIDATION_BATCH):
                part = slice(start, start + VALIDATION_BATCH)
                tokens = drawn.tokens[grid][part]
                keep = torch.zeros(len(tokens), dtype=torch.bool, device=device)
                logits = self.ar(dropped_condition(self.conditioner, drawn.captions[part], keep), tokens, grid)
                total += float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum"))
            found[f"nll{grid}"] = total / drawn.tokens[grid].numel()
        return {"loss": sum(found.values()) / len(found), **found}


def dropped_condition(conditioner: Conditioner, captions: list[str], dropped: Tensor) -> Tensor:
    """Condition features [B, T, ...] of captions, those of the unconditional branch where `dropped`, bool [B]."""
    conditioner.to(dropped.device, torch.float32)
    given = conditioner.condition(captions).features
    shape = (-1, *[1] * (given.dim() - 1))
    return torch.where(dropped.view(shape), conditioner.null(len(captions)), given)


def ar_config(config: TrainingFile, conditioner: ClassConditioner | PhraseConditioner) -> TransformerConfig:
    """Sizes of the AR model, with what follows from the other sections filled in."""
    section = config.section("ar")
    vocab_size = tokenizer_config(config).codebook_size
    if isinstance(conditioner, ClassConditioner):
        dim = (section["classes"] or {}).get("dim") or section.get("model", {}).get("dim")
        condition = {"cond_len": 1, "cond_dim": dim, "n_classes": conditioner.n_classes}
    else:
        text = conditioner.text.config
        condition = {"cond_len": text.length, "cond_dim": text.dim}
    sizes = {"vocab_size": vocab_size, "grids": section.get("grids", ()), **condition}
    return config.build("ar.model", lambda given: TransformerConfig.from_dict(given | sizes), section.get("model"))


def ar_task(config: TrainingFile, run: Path) -> ARTask:
    """The task of the stage `ar`, which goes on from a family (`init`) and from the text encoder of `captions`."""
    task = untrained(config, run, "ar")
    start, told = config.initial_family(), (run / "captions.pt").exists()
    if start is not None:
        start_from(start, task, text=not told)
    if told:
        learnt = averaged(run, "captions")
        with fitting(run / "captions.pt"):
            task.conditioner.weights["text"].load_state_dict(part(learnt, "text."))
            if task.ar.position_cond is not None:
                task.ar.position_cond.load_state_dict(part(learnt, "position."))
    return task


def text_task(config: TrainingFile, run: Path) -> ARTask:
    """The task of the stage `text`: the conditioner is trained further, the transformer frozen."""
    config.phrases("text")
    task = untrained(config, run, "text")
    weights = averaged(run, "ar")
    with fitting(run / "ar.pt"):
        task.module.load_state_dict(weights)
    return task


def untrained(config: TrainingFile, run: Path, stage: str) -> ARTask:
    """The task of a stage that trains by images, its networks as they begin."""
    section = config.section("ar")
    options = config.options("ar", ARTask, "model", "grids", "text", "classes", "phases", "relations")
    source = config.source(relations=section.get("relations"))
    tokenizer, conditioner = trained_tokenizer(config, run), config.conditioner()
    phases = [config.build("ar.phases", lambda given: Phase(**given), phase) for phase in section.get("phases", ())]
    if not phases:
        raise ValueError(f"{config.path}: ar.phases must list at least one {{until, shares, batch}}")
    held_out = config.validation_source(stage)
    sizes = ar_config(config, conditioner)
    if stage == "text":
        options["freeze_text"] = False  # it is what this stage trains
    return ARTask(sizes, conditioner, tokenizer, source, phases, held_out, stage == "text", **options)


def trained_ar(config: TrainingFile, run: Path) -> tuple[Conditioner, Transformer]:
    """The conditioner and the AR model of a run, with their averaged weights."""
    conditioner = config.conditioner()
    transformer = Transformer(ar_config(config, conditioner))
    for stage in ("ar", "text"):
        if stage == "ar" or (run / f"{stage}.pt").exists():
            load_averaged(nn.ModuleDict({**conditioner.weights, "ar": transformer}), run, stage)
    return conditioner, transformer


def same_conditions(a: Conditioner, b: Conditioner) -> bool:
    """Whether two conditioners know the same words, or the same classes."""
    if isinstance(a, PhraseConditioner) and isinstance(b, PhraseConditioner):
        return a.vocabulary.to_dict() == b.vocabulary.to_dict()
    return a.kind == b.kind and a.to_dict() == b.to_dict()


def start_from(family: Family, task: ARTask, *, text: bool = True) -> None:
    """Start the AR model, and with `text` the text encoder, from those of a family of the same sizes and words.

    A family of classes must have the same ones. The family may lack grids of the training file: their positions start
    from those of its largest grid.

    Raises:
        ValueError: the family's sizes, words or classes differ from the training file's.
    """
    given = task.conditioner
    if not same_conditions(family.conditioner, given):
        raise ValueError(f"init: family {family.name!r} has other words or classes than this training file")
    ar, _ = trained_here(family)
    old, new = ar.config, task.ar.config
    missing = set(old.grids) - set(new.grids)
    # What positions are told of the condition may be new: a family without it is a start as well.
    told = old.position_cond or new.position_cond
    sizes = replace(old, grids=new.grids, position_cond=told)
    if sizes != new or missing or (text and family.conditioner.to_dict() != given.to_dict()):
        raise ValueError(f"init: family {family.name!r} has other sizes than this training file: {old}")
    state = with_grids(ar.state_dict(), old.grids, new.grids)
    task.ar.load_state_dict({**task.ar.state_dict(), **state})
    if text:
        for name, module in given.weights.items():
            module.load_state_dict(family.conditioner.weights[name].state_dict())


def with_grids(state: dict[str, Tensor], old: tuple[int, ...], new: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights of a transformer on the grids `old` as weights on the grids `new`, a superset.

    The embeddings of a grid that is new are those of the largest old one, its rows and columns stretched linearly.
    """
    largest = old.index(max(old))
    grown = {k: v for k, v in state.items() if not k.startswith(("grid_embedding.", "row_embed", "col_embed"))}
    source = [old.index(g) if g in old else largest for g in new]
    grown["grid_embedding.weight"] = state["grid_embedding.weight"][source]
    for i, (grid, j) in enumerate(zip(new, source, strict=True)):
        for axis in ("row", "col"):
            weight = state[f"{axis}_embeddings.{j}.weight"]
            stretched = F.interpolate(weight.T[None], size=grid, mode="linear", align_corners=False)[0].T
            grown[f"{axis}_embeddings.{i}.weight"] = weight if grid == old[j] else stretched.contiguous()
    return grown
