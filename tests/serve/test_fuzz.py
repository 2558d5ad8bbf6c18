"""Requests that the documented schema allows and forbids, by schemathesis: no 5xx, and no undocumented answer.

The suite makes a few cases of each kind; docs/serving.md has the command for 10,000.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("schemathesis")
pytestmark = pytest.mark.slow

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header"
)


def test_no_request_breaks_the_documented_contract(start: Any, told: Any, tmp_path: Path) -> None:
    engine = told()
    # Any prompt draws: one of a few words would hardly ever be hit upon.
    engine.check_prompts = lambda prompts: []
    draw = engine.add_request
    engine.add_request = lambda prompt, **options: draw("apple", **options)
    live = start(engine, decoder="draft-only", qualities={})
    before = sum(live.outcomes().values())
    program = Path(sys.executable).with_name("st")
    options = {
        "--phases": "examples,coverage,fuzzing",
        "--checks": CHECKS,
        "--max-examples": os.environ.get("MULOSD_FUZZ_EXAMPLES", "15"),
        "--seed": "0",
        "--request-timeout": "60",
    }
    words = [word for option in options.items() for word in option]
    done = subprocess.run(
        [program, "run", f"{live.url}/openapi.json", "--no-color", "--continue-on-failure", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    live.at_rest()
    outcomes = live.outcomes()
    assert sum(outcomes.values()) - before > 50 and outcomes["failed"] == 0
    assert outcomes["finished"] > 5, "some of them were drawn"
    assert re.search(r"\d+ generated", done.stdout), done.stdout[-3000:]
