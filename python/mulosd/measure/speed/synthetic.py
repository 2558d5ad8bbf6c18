"""Speed of decoders at real sizes with random weights and planted rejections, beside the loops of others.

What is measured is the time from condition features to tokens; prompts' encoders and the decoding to pixels are left
out. Acceptance is an input here, not a result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...engine.decoding.base import Decoder
from ...engine.decoding.mulo import MuloSD
from ...engine.decoding.spec import parse, spell
from ...engine.engine import Engine
from ...engine.request import Request, Update
from ...engine.sampling import SamplingParams
from ...engine.scheduler import SchedulerConfig
from ...engine.stats import Recorder
from ..kernels.floors import Work, forward
from ..kernels.timing import time_calls
from ..rows import rows_of
from ..run import origin
from ..statistics import spread
from ..table import figure, labels, named, table, total
from .architectures import ARCHITECTURES, RATIOS, random_weights
from .metered import Metered
from .planted import Planted
from .static_loops import CompiledLoop, ReferenceLoop

if TYPE_CHECKING:
    from rich.table import Table

BASELINES = ("eager", "compiled")
PROMPT = "picture"
COPIED = 256 << 20  # bytes; more than a cache holds
WARNING = "random weights and planted rejections: for speed alone"

Progress = Callable[[str, int, int], None]


@dataclass
class Contestant:
    """Something that makes the tokens of an image from a seed, and what became known of it."""

    decoder: str
    spec: str
    make: Callable[[int], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    rejection: float | None = None
    coverage: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None


def default_decoders(grid: int, scale: int | None = None) -> list[str]:
    """Serial, ZipAR windows, and MuLo-SD of each ratio with the same windows for drafts and islands."""
    windows = [w for w in (16, 4) if w < grid] or [2]
    ratios = RATIOS if scale is None else (scale,)
    found = ["serial", *(f"zipar:window={w}" for w in windows)]
    return found + [f"mulo:scale={r}:window={w}:draft_window={w}" for r in ratios for w in windows]


def bench_synthetic(
    arch: str,
    *,
    accept: float = 0.97,
    scale: int | None = None,
    decoders: Sequence[str] | None = None,
    baselines: Sequence[str] = BASELINES,
    radius: int = 1,
    grid: int | None = None,
    cfg_scale: float = 4.0,
    top_k: int = 1000,
    dtype: str = "float32",
    device: str = "cpu",
    images: int = 3,
    collapse_prefix: bool = False,
    bandwidth: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time decoders and loops on random weights, image by image in turns.

    Args:
        arch: out of `ARCHITECTURES`.
        accept: share of candidates that MuLo-SD's verification accepts.
        scale: ratio of MuLo-SD in the default list of decoders; None takes 2 and 4.
        decoders: as `decoding.parse` reads them; None takes `default_decoders`.
        baselines: out of `BASELINES`.
        radius: of MuLo-SD's expansion, where a decoder states none.
        grid: side of the target grid; None takes the architecture's.
        cfg_scale, top_k: sampling; top_k is cut to the vocabulary.
        dtype, device: of the model.
        images: timed images of each, behind one that warms up.
        collapse_prefix: of `SchedulerConfig`; the loops keep the whole prefix.
        bandwidth: of memory, bytes a second; None measures that of a copy.
        seed: of the first image.
        progress: called with (what, done, total).

    Returns:
        A report of plain values; `synthetic` is true in it and in every row. `peak_memory` is in bytes and of a GPU.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"there is no baseline {', '.join(unknown)}; choose from {', '.join(BASELINES)}")
    for name, value, least in (("accept", accept, 0), ("images", images, 1), ("radius", radius, 0)):
        if value < least or (name == "accept" and value > 1):
            raise ValueError(f"{name} must be {'a share from 0 to 1' if name == 'accept' else f'{least} or more'}")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"the bandwidth must be positive, got {bandwidth}")
    if scale not in (None, *RATIOS):
        raise ValueError(f"the scale must be 2 or 4, got {scale}")

    side = grid or (ARCHITECTURES[arch].grid if arch in ARCHITECTURES else 0)
    chosen: list[Decoder] = []
    for text in default_decoders(side, scale) if decoders is None else decoders:
        decoder = parse(text)
        if isinstance(decoder, MuloSD):
            decoder = Planted.of(replace(decoder, radius=radius if decoder.radius is None else decoder.radius), accept)
        chosen.append(decoder)
    family = random_weights(arch, grid, device if device == "cpu" or torch.cuda.is_available() else "cpu", seed)
    engine = Engine(family, device=device, dtype=dtype, config=SchedulerConfig(collapse_prefix=collapse_prefix))
    vocab = family.ar.config.vocab_size
    sampling = SamplingParams(cfg_scale=cfg_scale, top_k=0 if top_k >= vocab else top_k)
    contestants = baseline_contestants(engine, baselines, sampling)
    contestants += [decoder_contestant(engine, decoder.resolve(family), sampling) for decoder in chosen]
    on_gpu = torch.device(device).type == "cuda"
    total, done = (images + 1) * len(contestants), 0
    for run in range(images + 1):
        for one in contestants:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            one.make(seed + run).cpu()
            if run:
                one.seconds.append(time.perf_counter() - begun)
                one.peak = torch.cuda.max_memory_allocated() if on_gpu else None
            done += 1
            if progress is not None:
                progress("generating", done, total)
    speed = bandwidth or copy_bandwidth(torch.device(device))
    return {
        "synthetic": True,
        "warning": WARNING,
        **origin(engine, sampling, seed),
        "arch": {"name": arch, **asdict(ARCHITECTURES[arch]), "grid": side, "parameters": family.parameters()["ar"]},
        "dtype": dtype,
        "accept": accept,
        "bandwidth": {"bytes_per_second": speed, "measured": bandwidth is None},
        "timing": {"runs": images, "batch": 1, "warm_up": 1},
        "rows": describe(contestants, speed),
    }


def describe(contestants: Sequence[Contestant], bandwidth: float) -> list[dict[str, Any]]:
    """A row each, compared with the first of their kind."""
    medians = {one.decoder: spread(one.seconds)["median"] for one in reversed(contestants)}
    rows = []
    for one in contestants:
        seconds = spread(one.seconds)
        floor = sum(work.bytes for work in one.works) / bandwidth
        rows.append(
            {
                "synthetic": True,
                "decoder": one.decoder,
                "spec": one.spec,
                "settings": one.settings,
                "seconds_per_image": {**seconds, "runs": len(one.seconds)},
                "forwards": one.forwards,
                "rejection": one.rejection,
                "coverage": one.coverage,
                "peak_memory": one.peak,
                "milliseconds_per_forward": 1e3 * seconds["median"] / len(one.works),
                "floor": {"seconds": floor, "share": floor / seconds["median"]},
                "speedup": {
                    name: medians[name] / seconds["median"] for name in ("serial", *BASELINES) if name in medians
                },
            }
        )
    return rows


def decoder_contestant(
    engine: Engine, decoder: Decoder, sampling: SamplingParams, features: Tensor | None = None
) -> Contestant:
    """A decoder of the engine, one request at a time; `features` are the condition's, None those of `PROMPT`."""
    one = Contestant(decoder.name, spell(decoder), lambda seed: make(seed), decoder.settings())

    def make(seed: int) -> Tensor:
        # What the forwards move is counted once, in the image that warms up.
        metered = Metered(decoder, one.works) if not one.works else decoder
        recorder = Recorder()
        given = conditions(engine, sampling.guided) if features is None else features
        request = Request(engine.family, given, seed, sampling, recorder)
        tokens = run_alone(engine, request, metered).tokens
        stats = recorder.stats
        one.forwards, one.rejection, one.coverage = stats.forwards, stats.rejection, stats.coverage
        if tokens is None:
            raise RuntimeError("a final update has the tokens of its image")
        return tokens

    return one


def run_alone(engine: Engine, request: Request, decoder: Decoder) -> Update:
    """The last update of one request."""
    engine.scheduler.add(request, decoder)
    while True:
        for update in engine.scheduler.step():
            if update.error is not None:
                raise update.error
            if update.kind == "final":
                return update


def conditions(engine: Engine, guided: bool) -> Tensor:
    """Condition features of a prompt, with the unconditional branch where it is needed."""
    with torch.inference_mode():
        features = engine.family.features([PROMPT])
        return torch.cat([features, engine.family.null_features(1)]) if guided else features


def baseline_contestants(engine: Engine, names: Sequence[str], sampling: SamplingParams) -> list[Contestant]:
    """The static loops on the same model."""
    family, kinds = engine.family, {"eager": ReferenceLoop, "compiled": CompiledLoop}
    grid, c = family.grids[-1], family.ar.config
    features = conditions(engine, sampling.guided).clone()
    found = []
    for name in names:
        loop = kinds[name](family.ar, grid, features, sampling)
        works = [
            forward(
                c.n_layers, c.dim, c.n_heads, c.head_dim, c.ffn_dim, c.vocab_size,
                B=len(features), Q=c.cond_len if i == 0 else 1, L=c.cond_len + i, logits=len(features),
                e=family.ar.output.weight.element_size(),
            )
            for i in range(grid * grid)
        ]  # fmt: skip
        forwards = {"prefill": 1, "serial": grid * grid - 1}
        found.append(Contestant(name, f"{name} static loop", loop.generate, {}, forwards, works))
    return found


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of a large tensor reads and writes."""
    source = torch.zeros(COPIED, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    seconds = 1e-6 * spread(time_calls(lambda: target.copy_(source), device, 0.5))["median"]
    return 2 * COPIED / seconds


def synthetic_table(report: dict[str, Any]) -> Table:
    """The rows as a table."""
    arch, bandwidth, rows = report["arch"], report["bandwidth"], rows_of(report)
    names = [f"{name} loop" if name in BASELINES else name for name in labels(rows)]
    columns = [
        named(names, rows),
        figure("s/image", "seconds_per_image"),
        figure("p20-p80", "seconds_per_image", "{low:.2g}-{high:.2g}"),
        total("fwd", "forwards"),
        figure("ms/fwd", "milliseconds_per_forward"),
        figure("× serial", "speedup.serial", "{value:.2f}"),
        figure("× eager", "speedup.eager", "{value:.2f}"),
        figure("res", "coverage", "{value:.0f} %", 100),
        figure("floor", "floor.share", "{value:.0f} %", 100),
    ]
    return table(
        rows,
        columns,
        f"SYNTHETIC {arch['name']}, {arch['parameters'] / 1e6:.0f} M parameters, {arch['grid']}x{arch['grid']} "
        f"tokens, {report['dtype']}, {100 * report['accept']:g} % accepted: {report['warning']}",
        f"{report['device']}. Floor: weights, keys and values of every forward once at "
        f"{bandwidth['bytes_per_second'] / 1e9:.1f} GB/s ({'measured copy' if bandwidth['measured'] else 'as given'})",
    )
