"""Runs one kernel: all threads of some blocks at once, those at the lowest instruction first.

Threads at one instruction form a group with a mask; groups meet again where their instructions do. Instructions of a
warp (shfl, vote, mma, ...) wait until every living lane that they name has come; barriers too, and then until every
thread of the block has.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from .lower import Lowering
from .memory import AsyncCopies, GlobalMemory, Lanes, SharedMemory
from .operands import BARRIER, BRANCH, END, PLAIN, WARP, Step
from .ops import UNSIGNED, Array
from .parse import WIDTH, Addr, Imm, Kernel, Sym
from .report import Report

MAX_STEPS = 20_000_000


class Registers(dict[str, Array]):
    """Registers by name; one that was never written holds junk."""

    def __init__(self, kernel: Kernel, threads: int) -> None:
        super().__init__()
        self._kernel, self._threads = kernel, threads

    def __missing__(self, name: str) -> Array:
        width = self._kernel.width(name)
        kind = np.dtype(bool) if self._kernel.registers.get(name.rstrip("0123456789")) == "pred" else UNSIGNED[width]
        self[name] = (
            np.zeros(self._threads, kind) if kind.kind == "b" else np.full(self._threads, 0x5A, np.uint8).astype(kind)
        )
        return self[name]


class Machine:
    """One launch of one kernel.

    Args:
        kernel: what `parse` gave.
        memory: the registered buffers.
        params: the bytes of all parameters.
        races: look for races, which costs time.
        seed: None runs whatever is furthest behind; a number draws warps and how long they run, which is slow, and
            must give the same results.
        batch_threads: threads run side by side.
    """

    def __init__(
        self,
        kernel: Kernel,
        memory: GlobalMemory,
        params: bytes,
        *,
        races: bool = True,
        seed: int | None = None,
        batch_threads: int = 4096,
    ) -> None:
        if len(params) != kernel.param_bytes:
            raise ValueError(f"{kernel.name} takes {kernel.param_bytes} bytes of parameters, got {len(params)}")
        self.kernel, self.memory, self.races, self.batch_threads = kernel, memory, races, batch_threads
        self.random = None if seed is None else np.random.default_rng(seed)
        self.params = np.frombuffer(params, np.uint8)
        self.report = Report(kernel.name)
        self.steps: list[Step | None] = [None] * len(kernel.code)
        self.hits = [0] * len(kernel.code)

    def run(self, grid: tuple[int, int, int], block: tuple[int, int, int], dynamic_shared: int) -> Report:
        """Run all blocks; results are in memory, findings and counters in the report."""
        threads = block[0] * block[1] * block[2]
        if threads % 32 or threads > self.kernel.max_threads:
            raise ValueError(f"{threads} threads a block: need a multiple of 32 up to {self.kernel.max_threads}")
        report = self.report
        report.grid, report.block = grid, block
        self.grid, self.block, self.block_threads = grid, block, threads
        self._lay_out(dynamic_shared)
        report.shared_bytes = self.shared_size
        self.memory.report = report
        for buffer in self.memory.buffers:
            buffer.read_sectors[:] = buffer.written_sectors[:] = False
            buffer.shadow = None
        if self.races:
            self.memory.watch(self._granule("global"), threads)
        blocks, side = grid[0] * grid[1] * grid[2], max(1, self.batch_threads // threads)
        lowering = Lowering(self)
        with np.errstate(all="ignore"):
            for first in range(0, blocks, side):
                self._batch(range(first, min(blocks, first + side)), lowering)
        self._finish()
        return report

    def _lay_out(self, dynamic: int) -> None:
        """Addresses of the shared arrays that the kernel names: those of known size first."""
        operands = [o.base if isinstance(o, Addr) else o for i in self.kernel.code for o in i.operands]
        used = {o.name for o in operands if isinstance(o, Sym)}
        self.symbols = {name: offset for name, (offset, _) in self.kernel.params.items()}
        end = 0
        arrays = {n: a for n, a in self.kernel.shared.items() if n in used}
        for name, array in sorted(arrays.items(), key=lambda item: item[1].size == 0):
            end = -(-end // array.align) * array.align
            self.symbols[name] = end
            end += array.size
        self.shared_size = end + dynamic

    def _granule(self, space: str) -> int:
        """Bytes of the narrowest access of the kernel, up to 4."""
        widths = [4]
        for instr in self.kernel.code:
            parts = instr.parts
            if parts[0] in ("ld", "st", "atom", "red") and any(p.startswith(space) for p in parts):
                widths.append(WIDTH[parts[-1]])
        return min(widths)

    def _batch(self, blocks: range, lowering: Lowering) -> None:
        count = len(blocks) * self.block_threads
        self.threads, self.blocks = count, len(blocks)
        lane = np.arange(count)
        within, number = lane % self.block_threads, lane // self.block_threads + blocks.start
        wide, high = self.block[0], self.block[1]
        across, down = self.grid[0], self.grid[1]
        special = {
            "tid": (within % wide, within // wide % high, within // (wide * high)),
            "ctaid": (number % across, number // across % down, number // (across * down)),
            "ntid": self.block,
            "nctaid": self.grid,
        }
        self.regs = Registers(self.kernel, count)
        for name, axes in special.items():
            for axis, values in zip("xyz", axes, strict=True):
                self.regs[f"%{name}.{axis}"] = np.broadcast_to(np.asarray(values, np.uint32), count)
        self.regs["%laneid"] = (within % 32).astype(np.uint32)
        self.regs["%warpid"] = (within // 32).astype(np.uint32)
        self.thread = lane + blocks.start * self.block_threads
        self.epoch = np.ones(count, np.int32)
        self.lane = lane
        granule = self._granule("shared")
        self.shared = SharedMemory(self.report, len(blocks), self.shared_size, self.block_threads, granule)
        if not self.races:
            self.shared.buffer.shadow = None
        self.copies = AsyncCopies(self.shared, count)
        self.alive = np.ones(count, bool)
        self.groups: dict[int, Array] = {0: self.alive.copy()}
        self.waiting: dict[int, Array] = {}  # for lanes of their warp
        self.arrived: dict[int, Array] = {}  # at a barrier
        budget = MAX_STEPS
        while self.groups:
            if self.random is None:
                budget = self._group(min(self.groups), lowering, budget)
            else:
                pc = int(self.random.choice(list(self.groups)))
                held = self.groups[pc] & np.repeat(self.random.random(count // 32) < 0.5, 32)
                if held.any() and (self.groups[pc] & ~held).any():
                    turn = int(self.random.integers(1, 300))
                    self.groups[pc] &= ~held
                    budget += self._group(pc, lowering, turn, held) - turn
                else:
                    budget = self._group(pc, lowering, budget)
            if budget <= 0:
                self.report.add("endless loop", self.where(min(self.groups, default=0)), 1, "stopped")
                return
        for kind, stuck in (("warp", self.waiting), ("barrier", self.arrived)):
            for pc, mask in stuck.items():
                self.report.add(f"deadlock at a {kind}", self.where(pc), int(mask.sum()), "others never come")

    def where(self, pc: int) -> str:
        instr = self.kernel.code[pc]
        return f"#{pc} {instr.op}" + (f" ({instr.line})" if instr.line else "")

    def lanes(self, mask: Array | None, where: str) -> Lanes:
        """The threads of an access."""
        if mask is None:
            return Lanes(self.lane, self.thread, self.epoch, where)
        (index,) = mask.nonzero()
        return Lanes(index, self.thread[index], self.epoch[index], where)

    def _group(self, pc: int, lowering: Lowering, budget: int, held: Array | None = None) -> int:
        """Run one group, but for the threads held back, until it splits, waits, ends or meets another."""
        mask: Array | None = self.groups.pop(pc)
        assert mask is not None
        if held is not None:
            self.groups[pc] = held
        if pc in self.waiting:
            mask = mask | self.waiting.pop(pc)
        warps = int(mask.reshape(-1, 32).any(axis=1).sum())
        everyone = mask
        if mask.all():
            mask = None
        # The others; nobody runs ahead of them unless the order is drawn.
        limit = min(self.groups, default=len(self.steps)) if self.random is None else len(self.steps)
        while budget > 0:
            budget -= 1
            step = self.steps[pc]
            if step is None:
                step = self.steps[pc] = lowering.lower(pc)
            kind = step.kind
            if kind in (WARP, BARRIER) and mask is not None:
                if pc in self.waiting:
                    self._join(pc, everyone)
                    return budget
                ready = everyone & self._ready(step, everyone)
                if not ready.all() and (everyone & ~ready).any():
                    self.waiting[pc] = everyone & ~ready
                    if not ready.any():
                        return budget
                    mask = everyone = ready
                    warps = int(mask.reshape(-1, 32).any(axis=1).sum())
            if kind in (PLAIN, WARP):
                step.run(mask)
            elif kind == BRANCH:
                taken = step.taken(mask)
                if taken is None:
                    self.hits[pc] += warps
                    pc = step.target
                    if pc >= limit or pc in self.groups:
                        self._join(pc, everyone)
                        return budget
                    continue
                if taken.any():
                    self.hits[pc] += warps
                    self._join(step.target, taken)
                    self._join(pc + 1, everyone & ~taken)
                    return budget
            elif kind == BARRIER:
                self.hits[pc] += warps
                self.arrived[pc] = self.arrived.get(pc, False) | everyone
                self._release()
                return budget
            elif kind == END:
                self.hits[pc] += warps
                gone = everyone if step.guard is None else everyone & step.guard()
                self.alive &= ~gone
                if (everyone & ~gone).any():
                    self._join(pc + 1, everyone & ~gone)
                # Those who waited for the lanes that left need wait no longer.
                for at, held in self.waiting.items():
                    self._join(at, held)
                self.waiting = {}
                self._release()
                return budget
            self.hits[pc] += warps
            pc += 1
            if pc >= limit or pc in self.groups:
                self._join(pc, everyone)
                return budget
        self._join(pc, everyone)
        return budget

    def _join(self, pc: int, mask: Array) -> None:
        if mask.any():
            known = self.groups.get(pc)
            self.groups[pc] = mask if known is None else known | mask

    def _ready(self, step: Step, mask: Array) -> Array:
        """Lanes whose warp is complete at an instruction: all living lanes that it names are here."""
        here, living = mask.reshape(-1, 32), self.alive.reshape(-1, 32)
        named = step.members().reshape(-1, 32)
        wanted = np.where(here, named, 0).max(axis=1)[:, None] >> np.arange(32) & 1
        missing = (living & (wanted != 0) & ~here).any(axis=1)
        return np.repeat(~missing, 32)

    def _release(self) -> None:
        """Let the blocks go on all of whose living threads have arrived."""
        if not self.arrived:
            return
        here = np.logical_or.reduce(list(self.arrived.values())).reshape(self.blocks, -1)
        living = self.alive.reshape(self.blocks, -1)
        done = np.repeat((here | ~living).all(axis=1) & here.any(axis=1), self.block_threads)
        for pc, mask in list(self.arrived.items()):
            free = mask & done
            if not free.any():
                continue
            step = self.steps[pc]
            assert step is not None
            step.run(None if free.all() else free)
            self._join(pc + 1, free)
            if (mask & ~free).any():
                self.arrived[pc] = mask & ~free
            else:
                del self.arrived[pc]
        self.epoch = self.epoch + done

    def _finish(self) -> None:
        counts: Counter[str] = Counter()
        for instr, hits in zip(self.kernel.code, self.hits, strict=True):
            parts = instr.op.split(".")
            counts[".".join(parts[:2]) if parts[0] in ("ld", "st", "mma", "cp", "wgmma", "shfl") else parts[0]] += hits
        self.report.instructions = +counts
        for direction in ("read", "written"):
            sectors = sum(int(getattr(b, f"{direction}_sectors").sum()) for b in self.memory.buffers)
            self.report.memory[f"global distinct bytes {direction}"] = 32 * sectors

    def constant(self, operand: Sym | Imm) -> int:
        """An address or a literal."""
        if isinstance(operand, Imm):
            return operand.value
        if operand.name not in self.symbols:
            raise NotImplementedError(f"the symbol {operand.name}")
        return self.symbols[operand.name]
