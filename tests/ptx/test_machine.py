"""The machine on PTX written by hand: each check must speak up where it should, and be silent where not."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from . import ops
from .machine import Machine
from .memory import GlobalMemory, at_address
from .mma import descriptor_addresses
from .parse import parse
from .report import Report

HEAD = """.version 8.0
.target sm_80
.address_size 64
.visible .entry f(.param .u64 f_0, .param .u64 f_1)
.maxntid 64, 1, 1
{
.reg .pred %p<9>; .reg .b32 %r<40>; .reg .f32 %f<20>; .reg .b64 %rd<20>;
.shared .align 16 .b8 tile[2048];
ld.param.u64 %rd1, [f_0]; ld.param.u64 %rd2, [f_1];
mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, tile;
mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
shl.b32 %r4, %r1, 2; add.s32 %r5, %r3, %r4;
"""


def launch(body: str, source: np.ndarray, target: np.ndarray, threads: int = 64, seed: int | None = None) -> Report:
    """Run a kernel of two pointers on one block; `target` counts as not written."""
    memory = GlobalMemory()
    memory.register(at_address(source.ctypes.data, source.nbytes, "source"))
    memory.register(at_address(target.ctypes.data, target.nbytes, "target", written=False))
    params = struct.pack("QQ", source.ctypes.data, target.ctypes.data)
    machine = Machine(parse(f"{HEAD}{body}\n}}", "f"), memory, params, seed=seed)
    return machine.run((1, 1, 1), (threads, 1, 1), 0)


def at_sector(values: np.ndarray) -> np.ndarray:
    """The same numbers, starting at a sector of memory."""
    room = np.zeros(values.nbytes + 32, np.uint8)
    start = -room.ctypes.data % 32
    out = room[start : start + values.nbytes].view(values.dtype)
    out[:] = values
    return out


def kinds(report: Report) -> set[str]:
    return {kind for kind, _ in report.findings}


EXCHANGE = """ld.global.f32 %f1, [%rd4]; st.shared.f32 [%r5], %f1; {barrier}
xor.b32 %r6, %r4, 252; add.s32 %r6, %r6, %r3; ld.shared.f32 %f2, [%r6]; st.global.f32 [%rd5], %f2; ret;"""


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_barrier_orders_an_exchange(seed: int | None) -> None:
    source, target = at_sector(np.arange(64, dtype=np.float32)), np.zeros(64, np.float32)
    report = launch(EXCHANGE.format(barrier="bar.sync 0;"), source, target, seed=seed)
    assert not report.findings
    np.testing.assert_array_equal(target, source[::-1])
    assert report.memory["global read sectors"] == 8 and report.ratio("read") == 1.0


def test_missing_barrier_is_a_race() -> None:
    report = launch(EXCHANGE.format(barrier=""), np.zeros(64, np.float32), np.zeros(64, np.float32))
    assert "shared race: read after a write without a barrier" in kinds(report)


def test_bounds_and_alignment() -> None:
    report = launch("ld.global.f32 %f1, [%rd4+4]; ret;", np.zeros(64, np.float32), np.zeros(4, np.float32))
    (found,) = report.findings.values()
    assert "out of bounds" in found.kind and found.count == 1
    report = launch("ld.global.v2.f32 {%f1, %f2}, [%rd4]; ret;", np.zeros(80, np.float32), np.zeros(4, np.float32))
    assert kinds(report) == {"global misaligned access of 8 bytes"}
    report = launch("st.shared.f32 [%r5+2000], %f1; ret;", np.zeros(4, np.float32), np.zeros(4, np.float32))
    assert "shared access of 4 bytes out of bounds of 2048" in kinds(report)


def test_memory_never_written() -> None:
    body = "ld.shared.f32 %f1, [%r5]; ld.global.f32 %f2, [%rd5]; ret;"
    report = launch(body, np.zeros(64, np.float32), np.zeros(64, np.float32))
    assert kinds(report) == {"shared read of memory never written", "global read of memory never written"}


@pytest.mark.parametrize(("wait", "clean"), [("cp.async.wait_group 0;", True), ("cp.async.wait_group 1;", False)])
def test_asynchronous_copies_land_when_waited_for(wait: str, clean: bool) -> None:
    source, target = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    body = f"""cp.async.ca.shared.global [%r5], [%rd4], 4; cp.async.commit_group; {wait}
    ld.shared.f32 %f2, [%r5]; st.global.f32 [%rd5], %f2; ret;"""
    report = launch(body, source, target)
    assert (not report.findings) == clean == bool((target == source).all())


def test_divergent_loop_meets_again_at_a_shuffle() -> None:
    body = """and.b32 %r10, %r1, 7; mov.u32 %r11, 0;
LOOP: setp.ge.u32 %p1, %r11, %r10; @%p1 bra DONE; add.s32 %r11, %r11, 1; bra.uni LOOP;
DONE: shfl.sync.bfly.b32 %r12|%p2, %r11, 1, 31, -1; st.global.u32 [%rd5], %r12; ret;"""
    target = np.zeros(64, np.uint32)
    assert not launch(body, np.zeros(4, np.uint32), target).findings
    np.testing.assert_array_equal(target, (np.arange(64) ^ 1) & 7)


def test_shuffle_that_waits_for_ever() -> None:
    body = """setp.lt.u32 %p1, %r1, 5; @%p1 bra OTHER; shfl.sync.idx.b32 %r12, %r1, 0, 31, -1; ret;
OTHER: bar.sync 0; ret;"""
    assert kinds(launch(body, np.zeros(4), np.zeros(4))) == {"deadlock at a warp"}


def test_bank_conflicts() -> None:
    body = "shl.b32 %r6, %r1, 7; and.b32 %r6, %r6, 1920; add.s32 %r6, %r6, %r3; st.shared.u32 [%r6], 1; ret;"
    report = launch(body, np.zeros(4), np.zeros(4), threads=32)
    assert report.memory["shared extra wavefronts"] == 15 and not report.findings


def test_product_of_fragments() -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((16, n)).astype(np.float16) for n in (16, 8))
    source = np.concatenate([a.reshape(-1), b.reshape(-1), np.zeros(128, np.float16)])
    target = np.zeros((16, 8), np.float32)
    body = """shl.b32 %r6, %r1, 4; add.s32 %r6, %r6, %r3; mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd1, %rd6;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd7]; st.shared.v4.b32 [%r6], {%r10, %r11, %r12, %r13};
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd7+512]; st.shared.v4.b32 [%r6+512], {%r10, %r11, %r12, %r13};
    bar.sync 0;
    and.b32 %r7, %r1, 15; shl.b32 %r7, %r7, 5;
    shr.u32 %r8, %r1, 4; shl.b32 %r8, %r8, 4; add.s32 %r7, %r7, %r8; add.s32 %r7, %r7, %r3;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r7];
    and.b32 %r8, %r1, 15; shl.b32 %r8, %r8, 4; add.s32 %r8, %r8, %r3;
    ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r24, %r25}, [%r8+512];
    mov.f32 %f1, 0f00000000;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f2, %f3, %f4, %f5},
    {%r20, %r21, %r22, %r23}, {%r24, %r25}, {%f1, %f1, %f1, %f1};
    shr.u32 %r9, %r1, 2; shl.b32 %r9, %r9, 5; and.b32 %r10, %r1, 3; shl.b32 %r10, %r10, 3; add.s32 %r9, %r9, %r10;
    cvt.u64.u32 %rd8, %r9; add.s64 %rd8, %rd8, %rd2; st.global.v2.f32 [%rd8], {%f2, %f3};
    st.global.v2.f32 [%rd8+256], {%f4, %f5}; ret;"""
    assert not launch(body, source, target, threads=32).findings
    np.testing.assert_allclose(target, a.astype(np.float64) @ b.astype(np.float64), atol=1e-5)


def test_fma_rounds_once() -> None:
    generator = np.random.default_rng(1)
    a, b = (generator.standard_normal(20000).astype(np.float32) for _ in range(2))
    c = (-(a.astype(np.float64) * b)).astype(np.float32) * np.float32(1 + 2.0**-20)
    exact = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    np.testing.assert_array_equal(ops.fma32(a, b, c, "rn"), exact.astype(np.float32))
    assert (ops.fma32(a, b, c, "rm").astype(np.longdouble) <= exact).all()


def test_bits() -> None:
    def u(*values: int) -> np.ndarray:
        return np.array(values, np.uint32)

    assert ops.extract_bits(u(0xABCD1234), u(8), u(8))[0] == 0x12
    assert ops.extract_bits(u(0x0000F000).view(np.int32), u(12), u(4))[0] == -1
    assert ops.insert_bits(u(0x5), u(0xFFFFFFFF), u(4), u(4))[0] == 0xFFFFFF5F
    assert ops.permute_bytes(u(0x33221100), u(0x77665544), u(0x7654))[0] == 0x77665544
    assert ops.lookup(u(0b1100), u(0b1010), u(0b0110), 0x96)[0] == 0b1100 ^ 0b1010 ^ 0b0110
    assert ops.funnel(u(0x1), u(0x80000000), u(1), True, True)[0] == 0
    assert (ops.divide(np.array([-7, 7, -7]), np.array([2, -2, -2])) == [-3, -3, 3]).all()
    assert (ops.shift(u(1, 1), u(31, 32), True) == [1 << 31, 0]).all()
    assert ops.multiply(np.array([-1], np.int32), np.array([3], np.int32), "hi")[0] == -1
    assert ops.f32_to_bf16(np.array([1.00390625, 1.01171875], np.float32)).tolist() == [0x3F80, 0x3F82]


def test_swizzled_descriptor_names_every_byte_once() -> None:
    descriptor = 1 << 62 | 64 << 32 | 1 << 16
    parts = [descriptor_addresses(descriptor + 2 * k, 64, False) for k in range(4)]
    assert sorted(np.concatenate(parts, axis=1).reshape(-1).tolist()) == list(range(0, 8192, 2))
