"""The row of every measurement: what ran, where, and its figures with their units and intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.atomic import atomic
from ..files.texts import read_json as read_object
from .machine import Machine
from .statistics import Z95

# Of figures by the last part of their name; what is not here has none.
UNITS = {
    "seconds_per_image": "s",
    "nll": "nats/token",
    "images_per_second": "1/s",
    "latency": "s",
    "peak_memory": "B",
    "milliseconds_per_forward": "ms",
}


@dataclass(frozen=True)
class Figure:
    """A value with the ends of its interval.

    Attributes:
        value: what was measured.
        low, high: of the 95 % interval, or of the 20th and 80th percentile where the value is a median; the value
            itself where nothing is known of its spread.
        unit: "" for none.
    """

    value: float
    low: float
    high: float
    unit: str = ""

    @classmethod
    def read(cls, plain: Any, interval: Sequence[float] | None = None, unit: str = "") -> Figure | None:
        """A figure as JSON states it: a number, {"value", "ci95" or "std"}, or {"median", "p20", "p80"}.

        Args:
            plain: what the JSON has.
            interval: its ends, where they stand beside it.
            unit: of the value.

        Returns:
            None where there is no value, or something else stands there.
        """
        if isinstance(plain, Mapping):
            if "median" in plain:
                return cls(plain["median"], plain["p20"], plain["p80"], unit)
            value, interval = plain.get("value"), plain.get("ci95", interval)
            if interval is None and value is not None and "std" in plain:
                interval = (value - Z95 * plain["std"], value + Z95 * plain["std"])
            plain = value
        if not isinstance(plain, int | float) or isinstance(plain, bool):
            return None
        low, high = (plain, plain) if interval is None else interval
        return cls(plain, low, high, unit)

    def times(self, factor: float) -> Figure:
        """The same in another unit, such as per cent."""
        return Figure(factor * self.value, factor * self.low, factor * self.high, self.unit)


@dataclass(frozen=True)
class Row:
    """What one thing gave that was measured.

    Attributes:
        what: says what ran, in words: `decoder` and `spec` (its text), or `op`, `shape`, `dtype` and `backend`.
        values: figures and what belongs to them, plain values as JSON states them.
        settings: of the decoder, resolved.
        machine: what it ran on.
        family: that was decoded; "" for none.
    """

    what: dict[str, str]
    values: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    machine: Machine = field(default_factory=lambda: Machine("", {}))
    family: str = ""

    def figure(self, key: str) -> Figure | None:
        """A figure by its name, "accuracy.scene" for one within another; None where it was not measured.

        Its interval stands in it, or beside it under the name with "_ci95".
        """
        found: Any = self.values
        *path, last = key.split(".")
        for part in path:
            found = found.get(part) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            return None
        return Figure.read(found.get(last), found.get(f"{last}_ci95"), UNITS.get(last, ""))

    def total(self, key: str) -> Figure | None:
        """The sum of a figure that is stated by its parts, such as forwards by role."""
        parts = self.values.get(key)
        return Figure.read(sum(parts.values()), self.values.get(f"{key}_ci95")) if isinstance(parts, Mapping) else None

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """All figures with their names."""
        yield from named(self, self.values, "")

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a report, which has what rows share: machine and family."""
        settings = {"settings": self.settings} if self.settings or "spec" in self.what else {}
        return {**self.what, **settings, **self.values}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], report: Mapping[str, Any]) -> Row:
        """A row of a report: its texts say what ran."""
        what = {key: value for key, value in plain.items() if isinstance(value, str)}
        values = {key: value for key, value in plain.items() if key not in what and key != "settings"}
        machine = Machine.of({**report, **plain})
        return cls(what, values, dict(plain.get("settings") or {}), machine, str(report.get("family") or ""))


def named(row: Row, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Figure]]:
    for key, value in values.items():
        figure = row.figure(prefix + key)
        if figure is not None:
            yield prefix + key, figure
        if isinstance(value, Mapping) and "median" not in value:
            inner = {k: v for k, v in value.items() if figure is None or k not in ("value", "std", "ci95")}
            yield from named(row, inner, f"{prefix}{key}.")


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a report of plain values."""
    return [Row.from_dict(plain, report) for plain in report["rows"]]


def read_json(path: Path) -> list[Row]:
    """The rows of a report that `--json` wrote; ValueError for another file."""
    try:
        return rows_of(read_object(path, kind=dict))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no rows of a measurement ({error})") from error


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with a header, figures with the ends of their intervals; the file appears whole or not at all."""
    records = []
    for row in rows:
        record: dict[str, Any] = {**({"family": row.family} if row.family else {}), **row.what}
        for key, figure in row.figures():
            name = f"{key} [{figure.unit}]" if figure.unit else key
            record[name] = figure.value
            if figure.low != figure.high:
                record |= {f"{key} low": figure.low, f"{key} high": figure.high}
        machine = row.machine
        record["versions"] = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        record |= {"device": machine.device, "commit": machine.commit or "", "date": machine.date or ""}
        records.append(record)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for record in records for key in record)), restval="")
    writer.writeheader()
    writer.writerows(records)
    with atomic(path) as file:
        file.write(text.getvalue().encode())
