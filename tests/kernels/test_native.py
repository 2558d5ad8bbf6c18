"""The native module: it builds, its kernels spill nothing, it imports without a driver, and its Philox is torch's."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from compiled import instructions

from mulosd.kernels import native, philox

ROOT = Path(__file__).resolve().parents[2]

# How many instances of each kernel there are: types, and for kv_write widths.
KERNELS = {
    "combine_splits_kernel": 3,
    "expand_islands_kernel": 1,
    "kv_write_kernel": 9,
    # Four sizes of the tail in registers, three types.
    "local_resample_kernel": 12,
    # Four code lengths, three types.
    "nearest_code_kernel": 12,
    "merge_nearest_kernel": 1,
    "pooled_mass_kernel": 12,
    # Three widths of a load for each of the 16-bit types, two for float32.
    "verify_attention_kernel": 8,
    # Four padded head sizes, two types.
    "verify_attention_mma_kernel": 8,
}

PROBE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("mulosd._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cases = json.loads(sys.argv[2])
print(json.dumps([module.device_count(), module.compiled_archs(), [module.philox_host(k, c) for k, c in cases]]))
"""


def cases() -> list[tuple[int, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(2**32, (20, 6), generator=generator).tolist()
    return [(0, [0] * 4), (2**64 - 1, [2**32 - 1] * 4), *((w[0] + (w[1] << 32), w[2:]) for w in words)]


def by_torch(key: int, counter: list[int]) -> list[int]:
    return philox.philox4x32(torch.tensor([key % 2**32, key >> 32]), torch.tensor(counter)).tolist()


def test_philox_of_the_installed_module() -> None:
    module = pytest.importorskip("mulosd._C")
    for key, counter in cases():
        assert module.philox_host(key, counter) == by_torch(key, counter)


def test_reason_is_given_where_the_module_cannot_serve() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    reason = native.unusable()
    assert reason is not None
    assert "mulosd._C" in reason or "nvcc" in reason or "device" in reason


def need_tools() -> None:
    for tool in ("nvcc", "cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} on PATH")
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("needs pybind11")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh build for sm_90, away from the installed one: the module's path and the compiler's output."""
    need_tools()
    folder = tmp_path_factory.mktemp("native")
    for name in ("setup.py", "CMakeLists.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    wanted = {
        "MULOSD_REQUIRE_NATIVE": "1",
        "MULOSD_VERBOSE_BUILD": "1",
        "MULOSD_CUDA_ARCHS": "90-real",
        "MULOSD_BUILD_JOBS": "1",
        "MULOSD_SKIP_NATIVE": "",
    }
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", "lib", "--build-temp", "temp"],
        cwd=folder,
        env=os.environ | wanted,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    return next((folder / "lib").rglob("_C*.so")), output


HOST_PROBE = """
import importlib.util, json, struct, sys
spec = importlib.util.spec_from_file_location("mulosd._cpu", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules
import array
x = array.array("f", [1.0] * 16)
w = array.array("f", [float(i) for i in range(32)])
out = array.array("f", [0.0, 0.0])
layer = (w.buffer_info()[0], 0, 0, 0, 2, 16)
found = []
for isa in module.isas():
    module.linear(layer, [x.buffer_info()[0], 0, 0, out.buffer_info()[0]], [16, 2, 1], 0.0, False, 4, isa)
    found.append(list(out))
print(json.dumps([module.isas(), module.has_pool(), found]))
"""


@pytest.mark.slow
def test_host_kernels_are_built_and_need_neither_torch_nor_threads(build: tuple[Path, str]) -> None:
    (path,) = build[0].parent.glob("_cpu*.so")
    probe = subprocess.run([sys.executable, "-c", HOST_PROBE, str(path)], capture_output=True, text=True, check=True)
    isas, pool, found = json.loads(probe.stdout)
    assert isas[-1] == "generic" and not pool
    assert found == [[120.0, 376.0]] * len(isas)


@pytest.mark.slow
def test_default_architectures_reach_the_compiler(tmp_path: Path) -> None:
    need_tools()
    import pybind11

    paths = [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    clean = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"}
    command = ["cmake", str(ROOT), "-G", "Ninja", *paths]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rules = (tmp_path / "build.ninja").read_text()
    assert "sm_80" in rules
    assert "sm_90" in rules


@pytest.mark.slow
def test_kernels_spill_nothing(build: tuple[Path, str]) -> None:
    entries = re.findall(r"Compiling entry function '(\w+)' for 'sm_90'", build[1])
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", build[1])
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", build[1])]
    assert Counter(name for entry in entries for name in KERNELS if name in entry) == KERNELS
    assert len(entries) == len(spills) == len(registers) == sum(KERNELS.values())
    spilt = {e: int(n[0]) for e, n in zip(entries, spills, strict=True) if n != ("0", "0", "0")}
    # 80 entries a thread fill the registers of a multiprocessor: of rows too long for its shared memory `pooled_mass`
    # sends a few words to the stack. No device of sm_90 needs them at 16 bits.
    assert all("Li80E" in entry and "pooled_mass_kernel" in entry for entry in spilt), spilt
    assert all(size <= 48 for size in spilt.values()), spilt
    for entry, used in zip(entries, registers, strict=True):
        assert used <= budget(entry), entry


def budget(entry: str) -> int:
    """Registers that a thread of a kernel may have."""
    if "verify_attention_mma" in entry and "Li64E" not in entry:
        return 224  # two blocks of 128 threads a multiprocessor
    if "verify_attention" in entry:
        return 168  # three of them
    # Two blocks of 512 threads; one, where the row fills the shared memory anyway.
    return 64 if "Li0E" in entry or re.search(r"nearest_code_kernelI\w+Li(8|16)E", entry) else 128


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 100, 120])
def test_attention_on_tensor_cores_fits_every_architecture(arch: int, tmp_path: Path) -> None:
    """Nothing is spilt, products run on tensor cores, and keys and values pass by the registers."""
    need_tools()
    cubin = tmp_path / "attention.cubin"
    source = ROOT / "csrc" / "verify_attention_mma.cu"
    flags = ["-std=c++17", "-O3", f"-I{ROOT / 'csrc' / 'include'}", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(["nvcc", *flags, str(source), "-o", str(cubin)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    assert len(frames) == 8 and set(frames) == {("0", "0")}
    kernels = instructions(cubin)
    assert len(kernels) == 8
    for name, sass in kernels.items():
        found = re.search(r"Li(\d+)ELi(\d+)E", name)
        assert found is not None
        dim, vector = int(found[1]), int(found[2])
        # A warp's 16 rows times 64 keys, then 16 rows of weights times 64 values: dim / 2 products of 16 x 8 x 16 each.
        assert sass["HMMA"] == dim
        assert sass["LDSM"] == dim // 2
        assert sass["LDGSTS"] == 2 * 64 // {64: 16, 112: 4}.get(dim, 8), (name, vector)
        assert sass["LDL"] == sass["STL"] == 0


@pytest.mark.slow
def test_module_imports_without_a_driver(build: tuple[Path, str]) -> None:
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROBE, str(build[0]), json.dumps(cases())]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, archs, words = json.loads(done.stdout)
    assert count == 0
    assert archs == ["90-real"]
    assert words == [by_torch(key, counter) for key, counter in cases()]
