"""Operands of instructions as functions: what threads read, what they write, and the steps made of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ops
from .ops import DTYPE, UNSIGNED, Array
from .parse import WIDTH, Addr, Imm, Instr, Operand, Reg, Sym, Vec

if TYPE_CHECKING:
    from .machine import Machine

PLAIN, WARP, BRANCH, BARRIER, END = range(5)
Mask = Array | None
Run = Callable[[Mask], None]
Read = Callable[[], Array]

LOGIC: dict[str, Callable[[Array, Array], Array]] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def nothing(mask: Mask) -> None:
    """What an instruction without an effect does."""


@dataclass
class Step:
    """One lowered instruction; which members count depends on the kind."""

    kind: int
    run: Run = nothing
    target: int = -1
    taken: Callable[[Mask], Mask] = lambda mask: None
    guard: Read | None = None
    members: Read = lambda: np.zeros(0)


class Operands:
    """Reads and writes of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.m = machine

    def _guard(self, instr: Instr) -> Read:
        name, negated = instr.guard, instr.negated
        assert name is not None
        return (lambda: ~self.m.regs[name]) if negated else (lambda: self.m.regs[name])

    def read(self, operand: Operand, kind: str) -> Read:
        """A function that gives an operand as numbers of a type."""
        dtype, machine = DTYPE[kind], self.m
        if isinstance(operand, (Imm, Sym)):
            value = machine.constant(operand)
            if dtype.kind == "b":
                fixed = np.array([value != 0])
            else:
                fixed = np.array([value & ((1 << 8 * dtype.itemsize) - 1)], UNSIGNED[dtype.itemsize]).view(dtype)
            return lambda: fixed
        if isinstance(operand, Vec):
            return self._packed(operand, dtype)
        assert isinstance(operand, Reg)
        name = operand.name
        if (name[0] == "%" and "." in name) or name in ("%laneid", "%warpid"):
            return lambda: machine.regs[name].view(dtype)
        width = machine.kernel.width(name)
        if dtype.kind == "b":
            return lambda: machine.regs[name]
        if width == dtype.itemsize:
            own = UNSIGNED[width]
            return (lambda: machine.regs[name]) if own == dtype else (lambda: machine.regs[name].view(dtype))
        if width > dtype.itemsize:
            narrow = UNSIGNED[dtype.itemsize]
            return lambda: machine.regs[name].astype(narrow).view(dtype)
        raise NotImplementedError(f"register {name} of {width} bytes read as {kind}")

    def _packed(self, vector: Vec, dtype: np.dtype[Any]) -> Read:
        """mov of several registers into a wider one."""
        width = dtype.itemsize // len(vector.items)
        parts = [self.read(item, f"b{8 * width}") for item in vector.items]
        unsigned = UNSIGNED[dtype.itemsize]

        def run() -> Array:
            whole = np.zeros(1, unsigned)
            for i, part in enumerate(parts):
                whole = whole | part().astype(unsigned) << unsigned.type(8 * width * i)
            return whole.view(dtype)

        return run

    def write(self, operand: Operand) -> Callable[[Array, Mask], None]:
        """A function that stores numbers in a register; where that is wider they are extended, by a sign if any."""
        machine = self.m
        if operand is None:
            return lambda value, mask: None
        assert isinstance(operand, Reg)
        name = operand.name
        kind = machine.kernel.registers.get(name) or machine.kernel.registers[name.rstrip("0123456789")]
        unsigned = np.dtype(bool) if kind == "pred" else UNSIGNED[WIDTH[kind]]

        def store(value: Array, mask: Mask) -> None:
            if value.dtype != unsigned:
                if value.itemsize < unsigned.itemsize:
                    signed = value.dtype.kind == "i"
                    value = value.astype(ops.SIGNED[unsigned.itemsize] if signed else unsigned)
                value = value.view(unsigned)
            if mask is not None:
                machine.regs[name] = np.where(mask, value, machine.regs[name])
            elif len(value) != machine.threads:
                machine.regs[name] = np.full(machine.threads, value[0])
            else:
                machine.regs[name] = value

        return store

    def address(self, operand: Operand, kind: str) -> Read:
        """Addresses of all threads, as uint64."""
        assert isinstance(operand, Addr)
        if isinstance(operand.base, (Sym, Imm)):
            fixed = np.array([self.m.constant(operand.base) + operand.offset], np.uint64)
            return lambda: np.broadcast_to(fixed, self.m.threads)
        wide = self.m.kernel.width(operand.base.name)
        base = self.read(operand.base, f"u{8 * wide}")
        step = np.array([operand.offset]).astype(UNSIGNED[wide])
        return lambda: (base() + step).astype(np.uint64)
