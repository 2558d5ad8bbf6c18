"""Many machines, by Ray: actors that draw a batch (`mulosd batch --ray`), and the server as a Ray Serve application
(`serve run mulosd.ray.serve:build family=emoji`). Needs the extra `ray`."""

from __future__ import annotations

EXTRA = "many machines need Ray: pip install 'mulosd[ray]'"


def check_extra() -> None:
    """ImportError that names the extra, where Ray is not installed."""
    try:
        import ray.actor  # noqa: F401
    except ImportError as error:
        raise ImportError(EXTRA) from error
