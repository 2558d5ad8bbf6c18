"""Which way a CPU multiplies by the weights of a model: measured once a machine, kept in a file, or as asked.

`F.linear` serves unless another way takes less than `CLEARLY` of its time: what is chosen is then the same whenever it
is measured, and nothing is slower than `F.linear` beyond the error of a measurement. Ways of float32 differ in the
order of their sums, so in the last bits. The times are kept by processor, torch version and threads, and the first
process that measured a shape decides for all that follow: later ones compute the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import host
from ..kernels.decode_layers import OP as DECODE_LAYERS
from ..kernels.decode_layers import Call as Whole
from ..kernels.decode_layers import Stack
from ..kernels.fused_linear import OP as FUSED_LINEAR
from ..kernels.fused_linear.call import Call as Fused
from ..kernels.kv_write import OP as KV_WRITE
from ..kernels.kv_write.call import Call as Write
from ..kernels.verify_attention import OP as VERIFY_ATTENTION
from ..kernels.verify_attention.call import Call as Attention
from .arguments import shown
from .atomic import atomic
from .host_step import layer_of
from .models.layers import Block
from .models.linear import (
    CLASS_ROWS,
    FEW_CLASSES,
    WAYS,
    Linear,
    Ways,
    has_onednn,
    left_linear,
    pack,
    packed_linear,
    wide_linear,
    widens,
)
from .models.quantized import QuantizedLinear

OPTIONS = ("auto", *WAYS)
# Names the option where none is given, and the folder that times are kept in.
ENVIRONMENT = "MULOSD_LINEAR"
FOLDER_ENVIRONMENT = "MULOSD_CACHE"
FORMAT = 3
# The part of the time of F.linear that another way must stay below.
CLEARLY = 0.9
# Seconds that all measurements of a model should take, and how often each candidate is timed at least and at most.
BUDGET, LAYER_BUDGET = 0.25, 0.03
ROUNDS, MOST_ROUNDS = 3, 40
# How much longer a measurement may last on a busy machine, and seconds that each has in any case.
PATIENCE, LEAST = 4.0, 0.001
# A measurement multiplies a part of a large weight, so that it ends: of so many weights, and of so many products.
MOST_WEIGHTS, MOST_PRODUCTS = 1 << 20, 1 << 24
# Keys and values that a whole layer is measured with.
LAYER_SLOTS = 256
# oneDNN's order is a copy of the weights: models above so many bytes are not copied.
MOST_PACKED = 1 << 30


def checked_linear(option: str | None) -> str:
    """How to multiply, by name; None is what $MULOSD_LINEAR says, or "auto". ValueError lists the names."""
    name = (os.environ.get(ENVIRONMENT) or "auto") if option is None else option
    if not isinstance(name, str) or name not in OPTIONS:
        raise ValueError(f"linear must be one of {', '.join(OPTIONS)}, got {shown(name)}")
    if name == "native" and host.unusable() is not None:
        raise ValueError(f"linear='native' is not possible: {host.unusable()}")
    if name == "onednn" and not has_onednn():
        raise ValueError("linear='onednn' is not possible: this build of torch lacks oneDNN")
    return name


@dataclass(frozen=True, order=True)
class Shape:
    """A layer as far as its speed goes: types of the input and of the weights, N and K."""

    kind: str
    weights: str
    n: int
    k: int

    @property
    def name(self) -> str:
        return f"{self.kind} x {self.weights} {self.n}x{self.k}"


@dataclass
class Times:
    """Microseconds by way, of each class of rows."""

    classes: list[dict[str, float]] = field(default_factory=list)

    def ways(self, *, packs: bool = True) -> tuple[str, ...]:
        """The way of each class of rows, without copies of the weights unless they may be packed."""
        return tuple(fastest({w: us for w, us in t.items() if packs or w != "onednn"}) for t in self.classes)


def fastest(times: dict[str, float]) -> str:
    """The way that is clearly faster than F.linear, or F.linear."""
    if "torch" not in times:
        return "torch"
    best = min(times, key=lambda way: times[way])
    return best if times[best] < CLEARLY * times["torch"] else "torch"


def shape_of(layer: Linear | QuantizedLinear, dtype: torch.dtype) -> Shape:
    """The shape of a layer for inputs of a type."""
    name = str(dtype).removeprefix("torch.")
    weights = str(layer.weight.dtype).removeprefix("torch.") if isinstance(layer, QuantizedLinear) else name
    return Shape(name, weights, layer.out_features, layer.in_features)


def layers_of(model: nn.Module) -> list[Linear | QuantizedLinear]:
    """The layers of a model that have ways."""
    return [m for m in model.modules() if isinstance(m, Linear | QuantizedLinear)]


def candidates(layer: Linear | QuantizedLinear, dtype: torch.dtype, rows: int) -> dict[str, Any]:
    """By way, a function of x [rows, K] that multiplies by a part of a layer's weights."""
    part = max(
        16, min(layer.out_features, MOST_WEIGHTS // layer.in_features, MOST_PRODUCTS // (rows * layer.in_features))
    )
    weight, found = layer.weight.detach()[:part], cast("dict[str, Callable[[Tensor], Tensor]]", {})
    scale = None
    if isinstance(layer, QuantizedLinear):
        small = QuantizedLinear(nn.Linear(1, 1, bias=False), "int8")
        small.weight, small.scale = weight, layer.scale[:part]
        small.in_features, small.out_features = layer.in_features, len(weight)
        small._whole = layer._whole
        scale = small.scale
        found["torch"] = small.forward
    else:
        weight = weight.to(dtype)
        found["torch"] = lambda x: wide_linear(x, weight, None) if widens(x) else F.linear(x, weight)
        if rows <= 4 and dtype == torch.float32:
            found["left"] = lambda x: left_linear(x, weight, None)
        if has_onednn(dtype):
            packed = pack(weight)
            found["onednn"] = lambda x: packed_linear(x, packed, None)
    if rows <= host.MOST_ROWS and host.unusable() is None:
        call = Fused(torch.zeros(rows, layer.in_features, dtype=dtype), weight, scale)
        if FUSED_LINEAR.reason("cpu", call) is None:
            found["native"] = lambda x: FUSED_LINEAR(Fused(x, weight, scale), "cpu")
    return found


def timed(ways: dict[str, Callable[[Tensor], Tensor]], x: Tensor, seconds: float) -> dict[str, float]:
    """The least microseconds of each way, taken in turns for so many seconds; none where the machine is too busy.

    The least of several is what the machine can do, if it was seen twice: for that they last up to `PATIENCE` times as
    long.
    """
    for call in ways.values():
        call(x)
    samples: dict[str, list[float]] = {way: [] for way in ways}
    begun, rounds, sure = time.perf_counter(), 0, False
    while rounds < MOST_ROUNDS:
        spent = time.perf_counter() - begun
        if rounds >= ROUNDS and (spent > seconds if sure else spent > PATIENCE * seconds):
            break
        for way, call in ways.items():
            start = time.perf_counter()
            call(x)
            samples[way].append(time.perf_counter() - start)
        rounds += 1
        sure = rounds >= ROUNDS and all(seen_twice(each) for each in samples.values())
    return {way: round(1e6 * min(each), 2) for way, each in samples.items()} if sure else {}


def seen_twice(samples: list[float]) -> bool:
    """Whether the least of several times is no accident."""
    first, second = sorted(samples)[:2]
    return second <= 1.15 * first


def measure(wanted: dict[Shape, Linear | QuantizedLinear]) -> dict[Shape, Times]:
    """Times of layers for every class of rows, as precise as `BUDGET` seconds allow."""
    found = {shape: Times() for shape in wanted}
    started = time.perf_counter()
    left = len(wanted) * len(CLASS_ROWS)
    with torch.inference_mode():
        for rows in CLASS_ROWS:
            for shape, layer in wanted.items():
                now = time.perf_counter()
                share = max(0.0, started + BUDGET - now) / left
                left -= 1
                dtype = getattr(torch, shape.kind)
                x = torch.randn(rows, shape.k, generator=torch.Generator().manual_seed(rows)).to(dtype)
                ways = candidates(layer, dtype, rows)
                found[shape].classes.append(timed(ways, x, max(share, LEAST)) if len(ways) > 1 else {"torch": 0.0})
    return found


def processor() -> str:
    """The name of this CPU, its family, model and stepping, and a digest of its instructions: virtual machines give the
    same name to CPUs of several generations."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = ""
    parts = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in parts}
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts]
    flags = facts.get("flags") or facts.get("Features") or ""
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:8]
    return " ".join([name, *numbers, digest])


def key() -> dict[str, str]:
    """What times depend on."""
    return {
        "format": str(FORMAT),
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "native": "none" if host.unusable() is not None else host.isa(),
    }


def folder() -> Path:
    """Where times are kept: $MULOSD_CACHE, or the user's folder for what can be computed again."""
    given = os.environ.get(FOLDER_ENVIRONMENT)
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mulosd"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mulosd"


def kept_file() -> Path:
    """The file of this processor, torch and number of threads."""
    digest = hashlib.sha256(json.dumps(key(), sort_keys=True).encode()).hexdigest()[:16]
    return folder() / f"linear-{digest}.json"


def read_kept(file: Path) -> dict[str, list[dict[str, float]]]:
    """Times by the name of a shape; none where there is no such file, or, with a warning, where it is broken."""
    try:
        kept = json.loads(file.read_text())
        if kept["key"] != key():
            raise ValueError("it is of another machine")
        shapes = {
            str(name): [{str(way): float(us) for way, us in times.items()} for times in classes]
            for name, classes in kept["shapes"].items()
        }
        if not all(set(times) <= set(WAYS) for classes in shapes.values() for times in classes):
            raise ValueError("it names unknown ways")
        if not all(len(t) == (FEW_CLASSES if n.startswith("layer") else len(CLASS_ROWS)) for n, t in shapes.items()):
            raise ValueError("it has other classes of rows")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{file} is broken and left out, times are measured again: {error}", stacklevel=2)
        return {}
    return shapes


def keep(file: Path, found: dict[str, Times]) -> dict[str, list[dict[str, float]]]:
    """Add times to a file, where another process has not been first; what it holds then, and what is not kept.

    Times of which the machine was too busy are not kept: the next process measures again. A folder that cannot be
    written to is no failure: every process then measures for itself.
    """
    kept = read_kept(file)
    mine = {name: times.classes for name, times in found.items()}
    sure = {name: classes for name, classes in mine.items() if all(classes)}
    whole = {**sure, **kept}
    if whole == kept:
        return {**mine, **kept}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as stream:
            stream.write(json.dumps({"key": key(), "shapes": whole}, indent=1).encode())
    except OSError as error:
        warnings.warn(f"times of linear layers cannot be kept ({error}): each process measures them", stacklevel=2)
    return {**mine, **kept}


def times_of(layers: Iterable[tuple[Linear | QuantizedLinear, torch.dtype]]) -> dict[Shape, Times]:
    """Times of layers and types of input: those that are kept, and the rest measured now."""
    wanted = {shape_of(layer, dtype): layer for layer, dtype in layers}
    file = kept_file()
    kept = read_kept(file)
    missing = {shape: layer for shape, layer in sorted(wanted.items()) if shape.name not in kept}
    if missing:
        kept = keep(file, {shape.name: times for shape, times in measure(missing).items()})
    return {shape: Times(kept[shape.name]) for shape in wanted}


def fixed(option: str, layer: Linear | QuantizedLinear, dtype: torch.dtype) -> tuple[str, ...]:
    """The ways of a layer where one is asked for, as far as it serves."""
    few = ["torch"] * len(CLASS_ROWS)
    quantised = isinstance(layer, QuantizedLinear)
    if option == "native":
        x = torch.zeros(1, layer.in_features, dtype=dtype)
        scale = layer.scale if isinstance(layer, QuantizedLinear) else None
        weight = layer.weight.detach() if quantised else layer.weight.detach()[:1].to(dtype)
        if FUSED_LINEAR.reason("cpu", Fused(x, weight, scale)) is None:
            few[:FEW_CLASSES] = ["native"] * FEW_CLASSES
    elif option == "left" and not quantised and dtype == torch.float32:
        few[:FEW_CLASSES] = ["left"] * FEW_CLASSES
    elif option == "onednn" and not quantised and has_onednn(dtype):
        few = ["onednn"] * len(CLASS_ROWS)
    return tuple(few)


def choose(models: Sequence[nn.Module], option: str) -> dict[str, Times]:
    """Settle how the layers of models on a CPU are multiplied.

    Args:
        models: whose layers are given their `ways`; their blocks learn whether the host kernels take whole layers.
        option: one of `OPTIONS`.

    Returns:
        The times that the choice is by, for "auto": of products, and of whole layers.
    """
    pairs: list[tuple[Linear | QuantizedLinear, torch.dtype]] = []
    for model in models:
        layers = layers_of(model)
        own = next((layer.weight.dtype for layer in layers if isinstance(layer, Linear)), torch.float32)
        pairs += [(layer, own) for layer in layers]
        if own == torch.float32:
            # What a verify pass of its own type computes in.
            pairs += [(layer, torch.bfloat16) for layer in layers if isinstance(layer, Linear)]
    size = sum(layer.weight.nbytes for layer, _ in {id(layer): (layer, d) for layer, d in pairs}.values())
    times = times_of(pairs) if option == "auto" and pairs else {}
    for layer in {id(layer): layer for layer, _ in pairs}.values():
        layer.ways = {}
    for layer, dtype in pairs:
        if option == "auto":
            ways: Ways = {dtype: times[shape_of(layer, dtype)].ways(packs=size <= MOST_PACKED)}
        else:
            ways = {dtype: fixed(option, layer, dtype)}
        layer.ways = {**layer.ways, **ways}
    blocks = [block for model in models for block in getattr(model, "blocks", []) if isinstance(block, Block)]
    return {**{shape.name: found for shape, found in times.items()}, **choose_layers(blocks, option)}


def described(times: dict[str, Times]) -> list[tuple[str, list[str]]]:
    """For people: the name of each shape, and for each class of rows what was chosen and its share of F.linear's time.

    For whole layers that is the share of the time part by part; "busy" is what no time could be measured of.
    """
    table = []
    for name, found in times.items():
        cells = []
        for way, each in zip(found.ways(), found.classes, strict=True):
            rivals = [us for other, us in each.items() if other != "torch"]
            if not each:
                cells.append("torch (busy)")
            elif way == "torch":
                cells.append(f"torch (next {min(rivals) / each['torch']:.2f})" if rivals else "torch")
            else:
                cells.append(f"{way} {each[way] / each['torch']:.2f}")
        table.append((name, cells))
    return table


def layer_name(block: Block, dtype: torch.dtype, ways: str) -> str:
    """What the time of a whole layer depends on."""
    sizes = [f"{w.out_features}x{w.in_features}" for w in (block.wqkv, block.wo, block.w13, block.w2)]
    kind = str(dtype).removeprefix("torch.")
    weights = str(block.wqkv.weight.dtype).removeprefix("torch.")
    digest = hashlib.sha256(ways.encode()).hexdigest()[:8]
    norms = "" if block.attention_out_norm is None else " four norms"
    return f"layer {kind} x {weights} {' '.join(sizes)} heads {block.n_heads}/{block.n_kv_heads}{norms} {digest}"


def layer_ways(block: Block, dtype: torch.dtype, rows: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """A layer of one block for x [1, rows, dim]: part by part, as `ways` has it, and whole by the host kernels."""
    shape = (1, LAYER_SLOTS, block.n_kv_heads, block.head_dim)
    k, v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    start = LAYER_SLOTS - rows
    slots = torch.arange(start, LAYER_SLOTS)[None]
    table = torch.stack(
        [torch.ones(LAYER_SLOTS, block.head_dim // 2), torch.zeros(LAYER_SLOTS, block.head_dim // 2)], -1
    )
    stack = Stack((layer_of(block, k, v),), block.n_heads, block.attention_norm.eps, table)

    def parts(x: Tensor) -> Tensor:
        q, own_k, own_v = block.qkv(x)
        q = KV_WRITE(Write(q, own_k, own_v, slots, table, k, v, start))
        attended, _ = VERIFY_ATTENTION(Attention(q, k, v, slots, None, LAYER_SLOTS, start))
        return block.finish(x, attended)

    found: dict[str, Callable[[Tensor], Tensor]] = {"torch": parts}
    call = Whole(torch.zeros(1, rows, block.wqkv.in_features, dtype=dtype), stack, slots, None, LAYER_SLOTS)
    if host.unusable() is None and DECODE_LAYERS.reason("cpu", call) is None:
        found["native"] = lambda x: cast(Tensor, DECODE_LAYERS(Whole(x, stack, slots, None, LAYER_SLOTS), "cpu"))
    return found


def measure_layer(block: Block, dtype: torch.dtype) -> Times:
    """Times of a whole layer for each class of few rows."""
    found = Times()
    with torch.inference_mode():
        for rows in CLASS_ROWS[:FEW_CLASSES]:
            ways = layer_ways(block, dtype, rows)
            x = torch.randn(1, rows, block.wqkv.in_features, generator=torch.Generator().manual_seed(rows)).to(dtype)
            found.classes.append(timed(ways, x, LAYER_BUDGET / FEW_CLASSES) if len(ways) > 1 else {"torch": 0.0})
    return found


def choose_layers(blocks: Sequence[Block], option: str) -> dict[str, Times]:
    """Settle for which classes of rows the host kernels take whole layers; the times that it is by, for "auto"."""
    file, kept, found = kept_file(), None, {}
    for block in blocks:
        dtype = block.attention_norm.weight.dtype
        parts = [block.wqkv, block.wo, block.w13, block.w2]
        if option != "auto":
            native = all("native" in part.ways.get(dtype, ()) for part in parts)
            block.host_classes = (option == "native" and native,) * FEW_CLASSES
            continue
        ways = "/".join(",".join(part.ways.get(dtype, ("torch",))[:FEW_CLASSES]) for part in parts)
        name = layer_name(block, dtype, ways)
        kept = read_kept(file) if kept is None else kept
        if name not in kept:
            kept = keep(file, {name: measure_layer(block, dtype)})
        found[name] = Times(kept[name])
        block.host_classes = tuple(way == "native" for way in found[name].ways())
    return found
