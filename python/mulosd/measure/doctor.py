"""Whether this machine is ready: each check says what it found and, where that is wrong, what to do about it.

With a GPU: driver, PyTorch, Triton, nvcc, the native module, every op of every backend against an oracle, images
against those of the CPU, and the replay of CUDA graphs. Without one, what a CPU can.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..engine.decoding import MuloSD, Serial
from ..engine.engine import Engine
from ..engine.random_family import random_family
from ..engine.sampling import SamplingParams
from ..engine.scheduler import SchedulerConfig
from ..kernels import native
from ..kernels.registry import diagnose
from .kernels import cases as shapes
from .kernels.cases import Case

# The least compute capability with units for bfloat16, for which the kernels are built.
LEAST_CAPABILITY = (8, 0)
# Levels of 255 by which pixels of the same tokens may differ between devices.
PIXEL_LEVELS = 2


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        right: whether all is well; None where there was nothing to check.
        said: what it saw.
        remedy: what to do where it is wrong.
    """

    check: str
    right: bool | None
    said: str
    remedy: str = ""


# A check: what it saw and whether that is right; an exception is a failure.
Check = Callable[[], tuple[bool | None, str]]


def examine(device: str | None = None) -> Iterator[Finding]:
    """Check this machine, one finding after the other.

    Args:
        device: the GPU to check, such as "cuda:1", or "cpu"; None is the first GPU where there is one.
    """
    seen = gpus()
    wants_gpu = device != "cpu" and (bool(seen) or torch.cuda.is_available() or device is not None)
    yield driver(seen, wants_gpu)
    yield found("torch", lambda: torch_sees(wants_gpu), TORCH_REMEDY)
    on_gpu = wants_gpu and torch.cuda.is_available()
    if on_gpu:
        place = torch.device(device or "cuda:0")
        yield found("capability", lambda: capability(place), "kernels and bfloat16 need an Ampere GPU (sm_80) or later")
    else:
        place = torch.device("cpu")
    yield found("triton", lambda: triton_there(on_gpu), "pip install 'mulosd[triton]'")
    yield found("native module", lambda: native_there(on_gpu), NATIVE_REMEDY)
    for case, backend in op_checks(place):
        what = f"{case.op}, {backend}, {str(case.dtype).removeprefix('torch.')}"
        remedy = f"MULOSD_BACKEND={'triton' if backend == 'cuda' else 'torch'} goes around it; please report it"
        yield found(what, partial(op_agrees, case, backend, place), remedy)
    yield found(
        "image against the CPU's", lambda: image_agrees(place), "run `pytest tests -m gpu` and report what fails"
    )
    yield found("pixels of a bundled family", lambda: pixels_agree(place), "reinstall: the files may be damaged")
    yield found(
        "graph replay", lambda: graphs_agree(place), "SchedulerConfig(static=False) goes without graphs; report it"
    )


TORCH_REMEDY = (
    "install a build of PyTorch for the driver's CUDA (nvidia-smi names it), such as `pip install torch --index-url "
    "https://download.pytorch.org/whl/cu130`, or update the driver"
)
NATIVE_REMEDY = (
    "put nvcc (CUDA toolkit) on PATH and run `MULOSD_REQUIRE_NATIVE=1 pip install --force-reinstall --no-deps .` from "
    "the checkout; until then Triton serves"
)


def found(check: str, look: Check, remedy: str) -> Finding:
    """Run one check."""
    try:
        right, said = look()
    except Exception as error:
        right, said = False, f"{type(error).__name__}: {error}"
    return Finding(check, right, said, remedy if right is False else "")


def gpus() -> list[str]:
    """GPUs that the driver knows: name, driver version and memory, a line each."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def driver(seen: list[str], wants_gpu: bool) -> Finding:
    """What the driver says."""
    if seen:
        return Finding("driver", True, "; ".join(seen))
    if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None:
        remedy = "run nvidia-smi by hand: it says what is wrong; after an update of the driver a reboot mends it"
        return Finding("driver", False, "there is a driver that names no GPU", remedy)
    if wants_gpu:
        remedy = "install the NVIDIA driver; in a container start it with --gpus all"
        return Finding("driver", False, "nvidia-smi is not there", remedy)
    return Finding("driver", None, "no GPU here: what a CPU can do is checked")


def torch_sees(wants_gpu: bool) -> tuple[bool | None, str]:
    built = torch.version.cuda
    text = f"torch {torch.__version__}, " + (f"built for CUDA {built}" if built else "built for the CPU")
    if not wants_gpu:
        return True, text
    if not torch.cuda.is_available():
        return False, f"{text}: it sees no GPU"
    return True, f"{text}, sees {torch.cuda.device_count()}: {torch.cuda.get_device_name()}"


def capability(place: torch.device) -> tuple[bool | None, str]:
    major, minor = torch.cuda.get_device_capability(place)
    free, total = torch.cuda.mem_get_info(place)
    text = f"sm_{major}{minor}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return (major, minor) >= LEAST_CAPABILITY, text


def triton_there(on_gpu: bool) -> tuple[bool | None, str]:
    try:
        text = f"triton {version('triton')}"
    except PackageNotFoundError:
        return (False if on_gpu else None), "not installed"
    return (True if on_gpu else None), text


def native_there(on_gpu: bool) -> tuple[bool | None, str]:
    nvcc = shutil.which("nvcc")
    compiler = f"nvcc at {nvcc}" if nvcc else "no nvcc on PATH"
    reason = native.unusable()
    if reason is None:
        return True, f"mulosd._C for {', '.join(map(str, native.module().compiled_archs()))}; {compiler}"
    return (False if on_gpu else None), f"{reason}; {compiler}"


def op_checks(place: torch.device) -> Iterator[tuple[Case, str]]:
    """Every op at small shapes, by every backend that can serve on the device."""
    types = [torch.float32, torch.bfloat16] if place.type == "cuda" else [torch.float32]
    usable = {(status.op, status.backend) for status in diagnose() if status.usable}
    for dtype in types:
        small = [
            shapes.attention(2, 4, 64, 1, 160, dtype),
            shapes.attention(2, 4, 64, 33, 160, dtype),
            shapes.kv_write(2, 4, 64, 5, 64, dtype),
            shapes.linear(3, 160, 96, dtype, gated=True),
            shapes.linear(3, 160, 96, dtype, quantised=True),
            shapes.sample(4, 1000, 50, dtype),
            shapes.pooled(4, 1000, 10, dtype),
            shapes.nearest(64, 1000, 8, dtype),
        ]
        if dtype == torch.float32:
            small += [shapes.islands(2, 16, None), shapes.islands(2, 16, 3)]
        for case in small:
            for backend in ("cuda", "triton", "torch") if place.type == "cuda" else ("torch",):
                if (case.op, backend) in usable:
                    yield case, backend


def op_agrees(case: Case, backend: str, place: torch.device) -> tuple[bool | None, str]:
    """The result of a backend against the oracle of the benchmarks."""
    from ..kernels import BackendUnavailable

    problem = case.make(place)
    try:
        result = problem.run(backend)()
    except BackendUnavailable as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith(f"{backend}:")]
        return None, f"{case.shape}: declines ({lines[0] if lines else error})"
    off = problem.error(result)
    return off <= problem.tolerance, f"{case.shape}: off by {off:.1e}, {problem.tolerance:.0e} allowed"


SAMPLING = SamplingParams(cfg_scale=2.5, top_k=10)
DECODERS = (Serial(), MuloSD(2, tau=0.2, radius=1, pool=3, window=2, draft_window=2))


def drawn(place: torch.device, static: bool | None = None) -> list[torch.Tensor]:
    """Two images a decoder of a tiny random family, twice: a second one replays what the first captured."""
    config = SchedulerConfig(max_running=4, static=static)
    engine = Engine(random_family(), device=str(place), dtype="float32", config=config)
    asked = [(decoder, seed) for decoder in DECODERS for seed in (1, 5)]
    made = [engine.generate("apple", decoder=d, sampling=SAMPLING, seed=s, num_images=2).tokens for d, s in asked]
    if place.type == "cuda" and static is not False:
        steps = [step for cache in engine.caches.values() for step in cache.steps.values()]
        if not any(step.graph is not None for step in steps):
            raise RuntimeError("no CUDA graph was captured")
    return made


def equal(made: list[torch.Tensor], expected: list[torch.Tensor]) -> tuple[bool, str]:
    """How many tokens are the same."""
    same = sum(int((a == b).sum()) for a, b in zip(made, expected, strict=True))
    total = sum(t.numel() for t in expected)
    return same == total, f"{same} of {total} tokens of a tiny random family are the same"


def image_agrees(place: torch.device) -> tuple[bool | None, str]:
    """Kernel by kernel on the device, against the CPU; on a CPU, steps of fixed shapes against it."""
    expected = drawn(torch.device("cpu"))
    return equal(drawn(place, static=place.type == "cpu"), expected)


def graphs_agree(place: torch.device) -> tuple[bool | None, str]:
    """Replays of graphs against steps kernel by kernel."""
    if place.type != "cuda":
        return None, "needs a GPU"
    return equal(drawn(place), drawn(place, static=False))


def pixels_agree(place: torch.device) -> tuple[bool | None, str]:
    """An image of a bundled family drawn on the device, and the pixels that the CPU makes of its tokens."""
    engine = Engine.from_pretrained("emoji", device=str(place))
    begun = time.perf_counter()
    result = engine.generate(engine.family.conditioner.example, seed=1)
    seconds = time.perf_counter() - begun
    cpu = engine if place.type == "cpu" else Engine.from_pretrained("emoji")
    pairs = zip(result.images, cpu.to_images(result.tokens), strict=True)
    most = max(max(abs(a - b) for a, b in zip(x.tobytes(), y.tobytes(), strict=True)) for x, y in pairs)
    levels = f"pixels off by {most} of 255"
    said = f"an image of 'emoji' in {str(engine.dtype).removeprefix('torch.')} took {seconds:.1f} s, {levels}"
    return most <= PIXEL_LEVELS, said
