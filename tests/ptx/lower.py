"""Turns instructions into functions of the mask of active threads, the first time that each is reached."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import ops
from .memory_access import MemoryInstructions
from .operands import BARRIER, BRANCH, END, LOGIC, PLAIN, WARP, Mask, Read, Run, Step, nothing
from .ops import UNSIGNED, Array
from .parse import WIDTH, Instr, Pair, Sym, Vec
from .warp import WarpInstructions

# Instructions whose effect on one thread at a time has no meaning here: orders of memory, hints, groups of wgmma.
_NOTHING = {"fence", "membar", "prefetch", "nop"}
_WARP = {"shfl", "vote", "redux", "match", "mma", "ldmatrix", "stmatrix", "wgmma"}


class Lowering(MemoryInstructions, WarpInstructions):
    """Lowers the instructions of one machine."""

    def lower(self, pc: int) -> Step:
        instr = self.m.kernel.code[pc]
        name = instr.parts[0]
        guard = None if instr.guard is None else self._guard(instr)
        try:
            if name == "bra":
                return self._branch(instr, guard)
            if name in ("ret", "exit"):
                return Step(END, guard=guard)
            if name in ("bar", "barrier"):
                return self._barrier(instr)
            if name in _WARP:
                if guard is not None:
                    raise NotImplementedError("a guarded instruction of a warp")
                return Step(WARP, self._warp(instr, pc), members=self._members(instr))
            run = nothing if name in _NOTHING else self._plain(instr, pc)
        except (KeyError, AttributeError, NotImplementedError) as error:
            raise NotImplementedError(f"{self.m.where(pc)}: {instr}") from error
        return Step(PLAIN, run if guard is None else _guarded(run, guard))

    # Control

    def _branch(self, instr: Instr, guard: Read | None) -> Step:
        (label,) = instr.operands
        assert isinstance(label, Sym)
        target = self.m.kernel.labels[label.name]

        def taken(mask: Mask) -> Mask:
            """None: all of the group; else those who jump."""
            if guard is None:
                return None
            chosen = guard()
            jump = chosen if mask is None else chosen & mask
            count = np.count_nonzero(jump)
            everyone = len(jump) if mask is None else np.count_nonzero(mask)
            return None if count == everyone else jump

        return Step(BRANCH, target=target, taken=taken)

    def _barrier(self, instr: Instr) -> Step:
        if "red" not in instr.parts:
            return Step(BARRIER, members=self._members(instr))
        if instr.parts[2] not in ("or", "and"):
            raise NotImplementedError(instr.op)
        write, source = self.write(instr.operands[0]), self.read(instr.operands[-1], "pred")
        machine, any_of = self.m, instr.parts[2] == "or"

        def run(mask: Mask) -> None:
            # Lanes that have left, or whose block does not go on, count for nothing.
            inside = machine.alive if mask is None else machine.alive & mask
            values = np.where(inside, source(), not any_of).reshape(machine.blocks, -1)
            result = values.any(axis=1) if any_of else values.all(axis=1)
            write(np.repeat(result, machine.block_threads), mask)

        return Step(BARRIER, run, members=self._members(instr))

    # Instructions of one thread

    def _plain(self, instr: Instr, pc: int) -> Run:
        name = instr.parts[0]
        special = {
            "ld": self._load,
            "st": self._store,
            "atom": self._atomic,
            "red": self._atomic,
            "cp": self._copy,
            "setp": self._setp,
            "mov": self._move,
        }.get(name)
        if special is not None:
            return special(instr, pc)
        function, kinds = self._arithmetic(instr)
        write = self.write(instr.operands[0])
        sources = [self.read(o, kind) for o, kind in zip(instr.operands[1:], kinds, strict=True)]
        if len(sources) == 1:
            (one,) = sources
            return lambda mask: write(function(one()), mask)
        if len(sources) == 2:
            one, two = sources
            return lambda mask: write(function(one(), two()), mask)
        return lambda mask: write(function(*[s() for s in sources]), mask)

    def _arithmetic(self, instr: Instr) -> tuple[Callable[..., Array], list[str]]:
        """The function of an instruction and the types of its operands."""
        parts = instr.parts
        name, kind, flags = parts[0], parts[-1], parts[1:-1]
        if name in ("cvta",):
            return (lambda x: x), [kind]
        if name == "cvt":
            source, target = parts[-1], parts[-2]
            if target in ("f16x2", "bf16x2"):
                return (lambda a, b: ops.pack_halves(a, b, target)), [source] * 2
            return (lambda x: ops.convert(x, source, target, flags[:-1])), [source]
        if name == "selp":
            return ops.select, [kind, kind, "pred"]
        if name == "fma" or (name == "mad" and kind == "f32"):
            if kind != "f32" or flags[0] not in ("rn", "rm"):
                raise NotImplementedError(instr.op)
            rounding = flags[0]
            if "ftz" in flags:
                f = ops.flush
                return (lambda a, b, c: f(ops.fma32(f(a), f(b), f(c), rounding))), [kind] * 3
            return (lambda a, b, c: ops.fma32(a, b, c, rounding)), [kind] * 3
        if name == "mul" and flags and flags[0] in ("lo", "hi", "wide"):
            return (lambda a, b: ops.multiply(a, b, flags[0])), [kind] * 2
        if name == "mad":
            wide = f"{kind[0]}{2 * int(kind[1:])}" if flags[0] == "wide" else kind
            return (lambda a, b, c: ops.multiply(a, b, flags[0]) + c), [kind, kind, wide]
        if name in ("shl", "shr"):
            return (lambda a, b: ops.shift(a, b, name == "shl")), [kind, "u32"]
        if name == "bfe":
            return ops.extract_bits, [kind, "u32", "u32"]
        if name == "bfi" and kind == "b32":
            return ops.insert_bits, [kind, kind, "u32", "u32"]
        if name == "prmt" and not flags:
            return ops.permute_bytes, [kind] * 3
        if name == "lop3":
            return (lambda a, b, c, table: ops.lookup(a, b, c, int(table[0]))), [kind] * 4
        if name == "shf":
            return (lambda a, b, c: ops.funnel(a, b, c, flags[0] == "l", flags[1] == "wrap")), [kind] * 3
        if kind == "f32" and name in ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"):
            function = ops.approximate(name)
            if "ftz" in flags:
                return (lambda x: ops.flush(function(ops.flush(x)))), [kind]
            return function, [kind]
        simple: dict[str, tuple[Callable[..., Array], int]] = {
            "add": (np.add, 2),
            "sub": (np.subtract, 2),
            "mul": (np.multiply, 2),
            "div": (ops.divide, 2),
            "rem": (ops.remainder, 2),
            "max": (lambda a, b: ops.extreme(a, b, True), 2),
            "min": (lambda a, b: ops.extreme(a, b, False), 2),
            "and": (np.bitwise_and, 2),
            "or": (np.bitwise_or, 2),
            "xor": (np.bitwise_xor, 2),
            "not": (np.invert, 1),
            "neg": (np.negative, 1),
            "abs": (np.abs, 1),
            "popc": (ops.count_ones, 1),
            "clz": (ops.leading_zeros, 1),
        }
        if not set(flags) <= {"rn", "full", "approx", "ftz"} or kind in ("f16", "bf16", "f16x2", "bf16x2", "f64"):
            raise NotImplementedError(instr.op)
        function, count = simple[name]
        if kind in ("s16x2", "u16x2"):
            return ops.halfwise(function, kind == "s16x2"), [kind] * count
        if "ftz" in flags:
            return (lambda *x: ops.flush(function(*map(ops.flush, x)))), [kind] * count
        return function, [kind] * count

    def _move(self, instr: Instr, pc: int) -> Run:
        kind = instr.parts[-1]
        target, source = instr.operands
        read = self.read(source, kind)
        if not isinstance(target, Vec):
            write = self.write(target)
            return lambda mask: write(read(), mask)
        width = WIDTH[kind] // len(target.items)
        writes = [self.write(item) for item in target.items]

        def run(mask: Mask) -> None:
            whole = read()
            for i, write in enumerate(writes):
                write((whole >> whole.dtype.type(8 * width * i)).astype(UNSIGNED[width]), mask)

        return run

    def _setp(self, instr: Instr, pc: int) -> Run:
        parts = instr.parts
        function, kind = ops.compare(parts[1]), parts[-1]
        target, *sources = instr.operands
        a, b = self.read(sources[0], kind), self.read(sources[1], kind)
        combine = LOGIC.get(parts[2]) if len(sources) == 3 else None
        other = self.read(sources[2], "pred") if combine is not None else None
        first = self.write(target.first if isinstance(target, Pair) else target)
        second = self.write(target.second) if isinstance(target, Pair) else None

        def run(mask: Mask) -> None:
            result = function(a(), b())
            inverse = ~result
            if combine is not None and other is not None:
                result, inverse = combine(result, other()), combine(inverse, other())
            first(result, mask)
            if second is not None:
                second(inverse, mask)

        return run


def _guarded(run: Run, guard: Read) -> Run:
    def guarded(mask: Mask) -> None:
        chosen = guard()
        active = chosen if mask is None else chosen & mask
        count = np.count_nonzero(active)
        if count == len(active):
            run(None)
        elif count:
            run(active)

    return guarded
