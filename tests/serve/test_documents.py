"""What the documents of the server say is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def names(live: Any) -> set[str]:
    """Names that a scrape may have, by family of metrics."""
    found = {metric.name for metric in live.state.metrics.registry.collect()}
    suffixes = ("", "_total", "_bucket", "_sum", "_count", "_info")
    return {name + suffix for name in found for suffix in suffixes}


def test_the_dashboard_asks_for_metrics_that_there_are(server: Any) -> None:
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = {name for panel in board["panels"] for target in panel["targets"]
             for name in re.findall(r"\b(?:mulosd|process)_\w+", target["expr"])}  # fmt: skip
    assert len(asked) > 15 and asked <= names(server), asked - names(server)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_page_lists_every_metric(server: Any) -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    section = text[text.index("## Metrics") : text.index("## In another server")]
    listed = {
        name for part in re.findall(r"`([^`]+)`", section) for name in re.findall(r"^(?:mulosd_)?([a-z_0-9]+)", part)
    }
    there = {m.name.removeprefix("mulosd_") for m in server.state.metrics.registry.collect() if "mulosd" in m.name}
    missing = {name for name in there if not {name, f"{name}_total", f"{name}_info"} & listed}
    assert missing == set()


def test_the_options_that_are_named_exist() -> None:
    from typer.main import get_command

    from mulosd.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    asked = (commands["serve"], commands["bench"].commands["serve"])
    known = {option for command in asked for parameter in command.params for option in parameter.opts} | {"--help"}
    text = (ROOT / "docs" / "serving.md").read_text()
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known


def test_every_code_of_an_error_is_listed() -> None:
    folder = ROOT / "python" / "mulosd" / "serve"
    told = {code for path in folder.glob("*.py") for code in re.findall(r'code="(\w+)"', path.read_text())}
    text = (ROOT / "docs" / "serving.md").read_text()
    assert len(told) > 10 and {code for code in told if f"`{code}`" not in text} <= {
        "client_gone",
        "method_not_allowed",
    }
