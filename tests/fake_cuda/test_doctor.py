"""`mulosd doctor` on the made-up device."""

from __future__ import annotations

import pytest

from mulosd.measure import doctor

from .device import FakeCuda


def test_a_device_that_serves_is_right_but_for_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and graphs are checked; the made-up device has no driver, and draws no random tensors for the ops."""
    monkeypatch.setattr(doctor, "op_checks", lambda _: iter(()))
    monkeypatch.setattr(doctor, "gpus", list)
    with FakeCuda() as log:
        findings = {f.check: f for f in doctor.examine("cuda:1")}
        assert log.sound() and set(log.captures) == {1}
    assert [f.check for f in findings.values() if f.right is False] == ["driver"]
    assert findings["graph replay"].right and findings["image against the CPU's"].right
    assert "sm_90" in findings["capability"].said
