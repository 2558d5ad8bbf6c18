"""What a launch did: findings about its accesses, and counters of the work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Finding:
    """One kind of fault at one instruction, with an example; `count` lanes had it."""

    kind: str
    where: str
    example: str
    count: int = 0

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}: {self.example} ({self.count} lanes)"


@dataclass
class Report:
    """Counters are sums over warps; sectors have 32 bytes, wavefronts of shared memory 128."""

    kernel: str
    grid: tuple[int, int, int] = (1, 1, 1)
    block: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    instructions: Counter[str] = field(default_factory=Counter)
    memory: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)  # instruction -> extra wavefronts

    def add(self, kind: str, where: str, count: int, example: str) -> None:
        self.findings.setdefault((kind, where), Finding(kind, where, example)).count += count

    def ratio(self, direction: str) -> float:
        """Sectors moved over those that the requested bytes need: 1 is perfect coalescing."""
        return 32 * self.memory[f"global {direction} sectors"] / max(1, self.memory[f"global {direction} bytes"])

    def summary(self) -> str:
        """All of it as text."""
        shape = f"grid {self.grid}, block {self.block}, shared {self.shared_bytes} B"
        lines = [f"{self.kernel}: {shape}"]
        lines += [f"  FINDING {found}" for found in self.findings.values()]
        lines.append("  warp instructions: " + ", ".join(f"{k} {v}" for k, v in self.instructions.most_common(12)))
        lines.append("  memory: " + ", ".join(f"{k} {v}" for k, v in sorted(self.memory.items())))
        lines.append(f"  sectors over need: read {self.ratio('read'):.2f}, written {self.ratio('write'):.2f}")
        lines += [f"  bank conflicts: {count} extra wavefronts at {at}" for at, count in self.conflicts.most_common(6)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Totals:
    """The counters of all launches of a call as quotients.

    `read`, `written`: sectors over those that the requested bytes need. `conflicts`: the part of the wavefronts of
    shared memory that bank conflicts add. `dram`: bytes that DRAM must give and take over those that the call cannot
    avoid. `instructions`: of warps, in PTX.
    """

    read: float
    written: float
    conflicts: float
    dram: float
    instructions: int

    @classmethod
    def of(cls, reports: list[Report], floor: int) -> Totals:
        memory: Counter[str] = sum((r.memory for r in reports), Counter())
        whole = Report("", memory=memory)
        wavefronts = memory["shared read wavefronts"] + memory["shared write wavefronts"]
        moved = memory["global distinct bytes read"] + memory["global distinct bytes written"]
        return cls(
            whole.ratio("read"),
            whole.ratio("write"),
            memory["shared extra wavefronts"] / max(1, wavefronts),
            moved / floor,
            sum(sum(r.instructions.values()) for r in reports),
        )

    def __str__(self) -> str:
        ratios = f"sectors read {self.read:.2f} written {self.written:.2f}, conflicts {self.conflicts:.0%}"
        return f"{ratios}, DRAM {self.dram:.2f}, instructions {self.instructions}"
