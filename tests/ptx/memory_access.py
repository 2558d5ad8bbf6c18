"""Instructions that access memory: loads, stores, atomics, asynchronous copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import Lanes, Space
from .operands import LOGIC, Mask, Operands, Run
from .ops import DTYPE, UNSIGNED
from .parse import Imm, Instr, Vec


class MemoryInstructions(Operands):
    """Lowers what threads do to memory."""

    def _space(self, instr: Instr) -> Space:
        spaces = {p.partition("_")[0] for p in instr.parts}
        return self.m.shared if "shared" in spaces else self.m.memory

    def _count(self, instr: Instr) -> int:
        return next((int(p[1:]) for p in instr.parts if p in ("v2", "v4", "v8")), 1)

    def _load(self, instr: Instr, pc: int) -> Run:
        machine, kind, count = self.m, instr.parts[-1], self._count(instr)
        dtype, where = DTYPE[kind], self.m.where(pc)
        target, source = instr.operands
        items = target.items if isinstance(target, Vec) else (target,)
        writes = [self.write(item) for item in items]
        address = self.address(source, kind)
        if "param" in instr.parts:
            at = np.arange(dtype.itemsize * count)

            def run_param(mask: Mask) -> None:
                wanted = address() if mask is None else np.where(mask, address(), np.uint64(0))
                outside = wanted + np.uint64(len(at)) > machine.kernel.param_bytes
                if outside.any():
                    example = f"offset {int(wanted[outside][0])}"
                    machine.report.add("parameter read out of bounds", where, int(outside.sum()), example)
                    wanted = np.where(outside, np.uint64(0), wanted)
                data = machine.params[wanted.astype(np.int64)[:, None] + at].view(dtype)
                for i, write in enumerate(writes):
                    write(data[:, i].copy(), mask)

            return run_param
        atomic = any(p in ("volatile", "relaxed", "acquire") for p in instr.parts)

        def run(mask: Mask) -> None:
            lanes = machine.lanes(mask, where)
            space = self._space(instr)
            wanted = address()[lanes.index]
            space.count(lanes, wanted, dtype.itemsize * count, "read")
            data = space.load(lanes, wanted, dtype.itemsize, count, atomic).view(dtype)
            for i, write in enumerate(writes):
                if mask is None:
                    write(data[:, i].copy(), None)
                else:
                    column = np.zeros(machine.threads, dtype)
                    column[lanes.index] = data[:, i]
                    write(column, mask)

        return run

    def _store(self, instr: Instr, pc: int) -> Run:
        machine, kind = self.m, instr.parts[-1]
        dtype, where = DTYPE[kind], self.m.where(pc)
        target, source = instr.operands
        items = source.items if isinstance(source, Vec) else (source,)
        reads = [self.read(item, f"b{8 * dtype.itemsize}") for item in items]
        address = self.address(target, kind)
        atomic = any(p in ("volatile", "relaxed", "release") for p in instr.parts)

        def run(mask: Mask) -> None:
            lanes = machine.lanes(mask, where)
            space = self._space(instr)
            values = [np.broadcast_to(read(), machine.threads)[lanes.index] for read in reads]
            wanted = address()[lanes.index]
            space.count(lanes, wanted, dtype.itemsize * len(reads), "write")
            space.store(lanes, wanted, np.stack(values, axis=1), atomic)

        return run

    def _atomic(self, instr: Instr, pc: int) -> Run:
        """One thread after the other, in the order of their numbers."""
        machine, kind, where = self.m, instr.parts[-1], self.m.where(pc)
        dtype = DTYPE[kind]
        operands = list(instr.operands)
        write = self.write(operands.pop(0) if instr.parts[0] == "atom" else None)
        address = self.address(operands.pop(0), kind)
        reads = [self.read(o, kind) for o in operands]
        action = next(p for p in instr.parts if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas"))

        def step(old: Any, value: Any, *swap: Any) -> Any:
            if action == "add":
                return old + value
            if action in ("min", "max"):
                return min(old, value) if action == "min" else max(old, value)
            if action in LOGIC:
                return LOGIC[action](old, value)
            return value if action == "exch" else (swap[0] if old == value else old)

        def run(mask: Mask) -> None:
            lanes = machine.lanes(mask, where)
            space = self._space(instr)
            wanted = address()[lanes.index]
            values = [np.broadcast_to(read(), machine.threads)[lanes.index] for read in reads]
            space.count(lanes, wanted, dtype.itemsize, "write", atomic=True)
            old = space.load(lanes, wanted, dtype.itemsize, 1, atomic=True).view(dtype)[:, 0]
            new, result = old.copy(), np.zeros(machine.threads, dtype)
            last: dict[tuple[int, int], Any] = {}
            owner = lanes.thread // machine.block_threads if space is machine.shared else np.zeros(len(wanted), int)
            for i, where_to in enumerate(zip(owner.tolist(), wanted.tolist(), strict=True)):
                before = last.get(where_to, old[i])
                result[lanes.index[i]] = before
                last[where_to] = new[i] = step(before, *[v[i] for v in values])
            for i, where_to in enumerate(zip(owner.tolist(), wanted.tolist(), strict=True)):
                new[i] = last[where_to]
            space.store(lanes, wanted, new[:, None].view(UNSIGNED[dtype.itemsize]), atomic=True)
            write(result, mask)

        return run

    def _copy(self, instr: Instr, pc: int) -> Run:
        """cp.async and its groups."""
        machine, where, parts = self.m, self.m.where(pc), instr.parts
        if parts[1] != "async" or "bulk" in parts or "mbarrier" in parts:
            raise NotImplementedError(instr.op)
        if parts[2] == "commit_group":
            return lambda mask: machine.copies.commit(machine.lanes(mask, where).index)
        if parts[2] in ("wait_all", "wait_group"):
            newest = None
            if parts[2] == "wait_group":
                (count,) = instr.operands
                assert isinstance(count, Imm)
                newest = count.value
            return lambda mask: machine.copies.wait(machine.lanes(mask, where).index, machine.epoch, newest)
        target, source, size, *some = instr.operands
        assert isinstance(size, Imm)
        width = size.value
        to, origin = self.address(target, "u64"), self.address(source, "u64")
        wanted = self.read(some[0], "u32") if some else None
        unit = min(8, width)

        def run(mask: Mask) -> None:
            lanes = machine.lanes(mask, where)
            data = np.zeros((len(lanes.index), width), np.uint8)
            count = (
                np.full(len(lanes.index), width)
                if wanted is None
                else np.broadcast_to(wanted(), machine.threads)[lanes.index]
            )
            whole = count == width
            if not (whole | (count == 0)).all():
                raise NotImplementedError("cp.async of a part of its bytes")
            if whole.any():
                some_lanes = Lanes(lanes.index[whole], lanes.thread[whole], lanes.epoch[whole], where)
                at = origin()[some_lanes.index]
                machine.memory.count(some_lanes, at, width, "read")
                data[whole] = machine.memory.load(some_lanes, at, unit, width // unit).view(np.uint8)
            machine.shared.count(lanes, to()[lanes.index], width, "write")
            machine.copies.start(lanes, to()[lanes.index], data)

        return run
