"""Compiles kernels for GPUs that are not here, and reads what came out: registers, stack, instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Compiled:
    """Resources of one compiled kernel: `registers` a thread, `stack` bytes (spills), `shared` bytes, instructions."""

    registers: int
    stack: int
    shared: int
    sass: Counter[str]


def compile_for(
    kernel: Any,
    capability: int,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
) -> Compiled:
    """Compile a `triton.jit` kernel as the JIT would for 16-byte aligned pointers and strides.

    Args:
        kernel: the decorated function.
        capability: 80, 86, 89, 90, 100 or 120.
        signature: parameter -> Triton type ("*fp16", "i32", "fp32"), for all that are not in `constants`.
        constants: values of `tl.constexpr` parameters, and of arguments specialised to None.
        num_warps, num_stages: launch options.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    # Without divisibility the compiler cannot use asynchronous copies, and the result is not what the JIT builds.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if types[name][0] in "*i" and types[name] != "i1" and not kernel.params[i].do_not_specialize
    }
    source = ASTSource(kernel, types, constexprs=dict(constants), attrs=aligned)
    built = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        (sass,) = instructions(cubin).values()
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(int(found[1]), int(found[2]), int(built.metadata.shared), sass)


def instructions(cubin: Path) -> dict[str, Counter[str]]:
    """How often each opcode stands in each kernel of a cubin."""
    _, *sections = re.split(r"^\.text\.(\w+):", _tool("nvdisasm", "-c", str(cubin)), flags=re.M)
    opcode = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_]*)", flags=re.M)
    return {name: Counter(opcode.findall(text)) for name, text in zip(sections[::2], sections[1::2], strict=True)}


def _tool(name: str, *arguments: str) -> str:
    """What a binary tool of CUDA prints; Triton's wheel brings them."""
    triton = pytest.importorskip("triton")
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True).stdout
