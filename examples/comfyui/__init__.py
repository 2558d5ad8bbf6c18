"""Nodes for ComfyUI that draw with mulosd; README.md says how to install them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .nodes import MulosdLoader, MulosdSampler


class MulosdExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [MulosdLoader, MulosdSampler]


async def comfy_entrypoint() -> MulosdExtension:
    return MulosdExtension()
