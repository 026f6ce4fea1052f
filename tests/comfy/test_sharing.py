"""The graph that a file made in ComfyUI opens on its canvas, and --disable-metadata (cases_sharing.py)."""
from __future__ import annotations

from vqpack.vq_core.header import WORKFLOW_KEY, canvas_graph


def test_disable_metadata_is_obeyed(comfyui, inside):
    found = inside(comfyui, "graph", script="cases_sharing.py")
    assert found == {"False": canvas_graph(["unet", "te1", "te2", "vae"])[WORKFLOW_KEY], "True": None}
