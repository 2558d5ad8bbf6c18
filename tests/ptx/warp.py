"""Instructions of a warp or a group of four: shuffles, votes, sums, matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import mma, ops
from .memory import Lanes
from .operands import LOGIC, Mask, Operands, Read, Run, nothing
from .ops import DTYPE, Array
from .parse import Imm, Instr, Operand, Pair, Vec


class WarpInstructions(Operands):
    """Lowers what the lanes of a warp do together."""

    def _members(self, instr: Instr) -> Read:
        """The mask of lanes that an instruction names; for those without one, all."""
        if instr.parts[0] in ("shfl", "vote", "redux", "match"):
            member = self.read(instr.operands[-1], "u32")
            return lambda: np.broadcast_to(member(), self.m.threads).astype(np.int64)
        return lambda: np.full(self.m.threads, 0xFFFFFFFF, np.int64)

    def _warp(self, instr: Instr, pc: int) -> Run:
        name = instr.parts[0]
        return {
            "shfl": self._shuffle,
            "vote": self._vote,
            "redux": self._reduce,
            "mma": self._mma,
            "ldmatrix": self._load_matrices,
            "stmatrix": self._store_matrices,
            "wgmma": self._wgmma,
        }[name](instr, pc)

    def _all(self, read: Read) -> Array:
        return np.broadcast_to(read(), self.m.threads)

    def _shuffle(self, instr: Instr, pc: int) -> Run:
        machine, mode, where = self.m, instr.parts[2], self.m.where(pc)
        target, source, by, clamp, _ = instr.operands
        value = self.write(target.first if isinstance(target, Pair) else target)
        flag = self.write(target.second if isinstance(target, Pair) else None)
        a, b, c = self.read(source, "b32"), self.read(by, "u32"), self.read(clamp, "u32")

        def run(mask: Mask) -> None:
            lane = (machine.lane % 32).astype(np.int64)
            step, bounds = self._all(b).astype(np.int64) & 31, self._all(c).astype(np.int64)
            segment, limit = bounds >> 8 & 31, bounds & 31
            least, most = lane & segment, (lane & segment) | (limit & ~segment)
            if mode == "up":
                chosen = lane - step
                good = chosen >= most
            elif mode == "down":
                chosen = lane + step
                good = chosen <= most
            elif mode == "bfly":
                chosen = lane ^ step
                good = chosen <= most
            else:
                chosen = least | (step & ~segment)
                good = chosen <= most
            chosen = np.where(good, chosen, lane) + machine.lane // 32 * 32
            if mask is not None:
                absent = mask & ~mask[chosen]
                if absent.any():
                    machine.report.add(
                        "shuffle from an absent lane", where, int(absent.sum()), "its value is undefined"
                    )
            value(self._all(a)[chosen], mask)
            flag(good, mask)

        return run

    def _vote(self, instr: Instr, pc: int) -> Run:
        machine, mode = self.m, instr.parts[2]
        write, source = self.write(instr.operands[0]), self.read(instr.operands[1], "pred")

        def run(mask: Mask) -> None:
            present = np.ones(machine.threads, bool) if mask is None else mask
            here, said = present.reshape(-1, 32), self._all(source).reshape(-1, 32)
            if mode == "ballot":
                bits = ((said & here).astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
                write(np.repeat(bits, 32), mask)
            elif mode in ("any", "all"):
                result = (said & here).any(axis=1) if mode == "any" else (said | ~here).all(axis=1)
                write(np.repeat(result, 32), mask)
            else:
                raise NotImplementedError(instr.op)

        return run

    def _reduce(self, instr: Instr, pc: int) -> Run:
        action, kind = instr.parts[2], instr.parts[-1]
        dtype = DTYPE[kind]
        functions = {"add": np.add, "min": np.minimum, "max": np.maximum} | LOGIC
        function: Any = functions[action]
        least = {"add": 0, "or": 0, "xor": 0, "and": -1 if dtype.kind == "i" else 2**32 - 1}
        if action in ("min", "max"):
            info = np.iinfo(dtype)
            least[action] = info.max if action == "min" else info.min
        idle = np.array(least[action], dtype)
        write, source = self.write(instr.operands[0]), self.read(instr.operands[1], kind)

        def run(mask: Mask) -> None:
            values = self._all(source)
            if mask is not None:
                values = np.where(mask, values, idle)
            result = function.reduce(values.reshape(-1, 32), axis=1, dtype=dtype)
            write(np.repeat(result, 32), mask)

        return run

    def _mma(self, instr: Instr, pc: int) -> Run:
        shape, kinds = instr.parts[3], instr.parts[-4:]
        kind, depth = kinds[1], int(shape.partition("k")[2])
        known = {("f16", 16), ("f16", 8), ("bf16", 16), ("bf16", 8), ("tf32", 8)}
        if (
            not shape.startswith("m16n8")
            or (kind, depth) not in known
            or kinds[0] != "f32"
            or "row.col" not in instr.op
        ):
            raise NotImplementedError(instr.op)
        target, *sources = instr.operands
        vectors = [s.items if isinstance(s, Vec) else (s,) for s in sources]
        a, b = ([self.read(item, "b32") for item in vector] for vector in vectors[:2])
        c = [self.read(item, "f32") for item in vectors[2]]
        assert isinstance(target, Vec)
        writes = [self.write(item) for item in target.items]

        def run(mask: Mask) -> None:
            given = [[self._all(read) for read in reads] for reads in (a, b, c)]
            for write, value in zip(writes, mma.multiply_add(kind, depth, *given), strict=True):
                write(value, mask)

        return run

    def _rows(self, instr: Instr, operand: Operand) -> tuple[int, Callable[[Mask], tuple[Any, Array, Array]]]:
        """How many matrices ldmatrix or stmatrix moves; and lanes that name rows, their addresses, warps at work."""
        machine, count = self.m, int(next(p for p in instr.parts if p in ("x1", "x2", "x4"))[1:])
        address, where = self.address(operand, "u64"), ""

        def rows(mask: Mask) -> tuple[Any, Array, Array]:
            naming = machine.lane % 32 < 8 * count
            chosen = naming if mask is None else naming & mask
            lanes = machine.lanes(chosen, where)
            return lanes, address()[lanes.index], np.unique(lanes.index // 32)

        return count, rows

    def _load_matrices(self, instr: Instr, pc: int) -> Run:
        machine, where = self.m, self.m.where(pc)
        target, source = instr.operands
        items = target.items if isinstance(target, Vec) else (target,)
        writes = [self.write(item) for item in items]
        count, rows = self._rows(instr, source)
        transposed = "trans" in instr.parts

        def run(mask: Mask) -> None:
            lanes, address, warps = rows(mask)
            lanes.where = where
            machine.shared.count(lanes, address, 16, "read")
            data = machine.shared.load(lanes, address, 4, 4).reshape(len(warps), count, 8, 4)
            for write, value in zip(writes, mma.spread_matrices(data, transposed), strict=True):
                whole = np.zeros((machine.threads // 32, 32), np.uint32)
                whole[warps] = value.reshape(-1, 32)
                write(whole.reshape(-1), mask)

        return run

    def _store_matrices(self, instr: Instr, pc: int) -> Run:
        machine, where = self.m, self.m.where(pc)
        target, source = instr.operands
        items = source.items if isinstance(source, Vec) else (source,)
        reads = [self.read(item, "b32") for item in items]
        _, rows = self._rows(instr, target)
        transposed = "trans" in instr.parts

        def run(mask: Mask) -> None:
            lanes, address, warps = rows(mask)
            lanes.where = where
            given = [self._all(read).reshape(-1, 32)[warps].reshape(-1) for read in reads]
            machine.shared.count(lanes, address, 16, "write")
            machine.shared.store(lanes, address, mma.gather_matrices(given, transposed).reshape(-1, 4))

        return run

    def _wgmma(self, instr: Instr, pc: int) -> Run:
        """The product is there at once, so a missing wait does not show."""
        parts = instr.parts
        if parts[1] != "mma_async":
            return nothing
        machine, where = self.m, self.m.where(pc)
        shape = next(p for p in parts if p.startswith("m64n"))
        columns, kind = int(shape[4:].partition("k")[0]), parts[-1]
        if shape.partition("k")[2] != "16" or parts[-3] != "f32" or kind not in ("f16", "bf16"):
            raise NotImplementedError(instr.op)
        target, a, b, add, sign_a, sign_b, *flips = instr.operands
        assert isinstance(target, Vec)
        if any(not isinstance(s, Imm) or s.value != 1 for s in (sign_a, sign_b)):
            raise NotImplementedError("negated operands of wgmma")
        sums = [self.read(item, "f32") for item in target.items]
        writes = [self.write(item) for item in target.items]
        keeps = self.read(add, "pred")
        flipped = [isinstance(f, Imm) and f.value != 0 for f in flips]
        registers = [self.read(item, "b32") for item in a.items] if isinstance(a, Vec) else None
        described_a = None if registers is not None else self.read(a, "u64")
        described_b = self.read(b, "u64")

        def fetch(described: Read, rows: int, transposed: bool, active: Array) -> Array:
            descriptors = self._all(described).reshape(-1, 128)
            if (descriptors != descriptors[:, :1])[active].any():
                machine.report.add("descriptor differs between lanes", where, 1, "it must be the same for all")
            bits = np.zeros((len(active), rows, 16), np.uint16)
            for group in active.nonzero()[0].tolist():
                at = mma.descriptor_addresses(int(descriptors[group, 0]), rows, transposed)
                leader = np.full(at.size, group * 128)
                lanes = Lanes(leader, machine.thread[leader], machine.epoch[leader], where)
                bits[group] = machine.shared.load(lanes, at.astype(np.uint64).reshape(-1), 2, 1).reshape(rows, 16)
            return ops.bf16_to_f32(bits) if kind == "bf16" else bits.view(np.float16)

        def run(mask: Mask) -> None:
            present = np.ones((machine.threads // 128, 128), bool) if mask is None else mask.reshape(-1, 128)
            active = np.asarray(present.all(axis=1))
            if (active != present.any(axis=1)).any():
                raise NotImplementedError("wgmma of a part of a warpgroup")
            if registers is not None:
                left = mma.fragment_rows([self._all(r) for r in registers], kind)
            else:
                assert described_a is not None
                left = fetch(described_a, 64, flipped[0], active)
            keep = self._all(keeps)
            before = [np.where(keep, self._all(s), np.float32(0)) for s in sums]
            product = mma.warpgroup_multiply_add(left, fetch(described_b, columns, flipped[-1], active), before)
            for write, value in zip(writes, product, strict=True):
                write(value, mask)

        return run
