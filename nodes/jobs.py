"""What the page is told of a job it has put into the host's queue, whichever window asks and whenever."""
from __future__ import annotations

import base64
import io
from collections.abc import Mapping

from . import host
from .node_progress import NodeProgress

NODE = "vqpack_quantize"                   # the one node of such a prompt (web/job.js); no node of a graph has this id


def job(query: Mapping[str, str]) -> dict:
    """{"state", "share", "text", "file", "picture"}; query: id, of a prompt.

    state: "waiting", "running", "done", "stopped", "failed", or "unknown" where the host knows no such prompt (any
    more). share: 0 to 1; file: name of the result; picture: of the errors so far, a data URL.
    """
    name = query.get("id", "")
    found = {"state": "unknown", "share": 0.0, "text": "", "file": "", "picture": ""}
    place, entry = host.place_of(name)
    if place == "running":
        return {**found, "state": place, "text": "starting", **_shown(name)}
    if place == "ended":
        return {**found, "picture": _shown(name).get("picture", ""), **_ended(entry)}
    return {**found, "state": place}


def _shown(name: str) -> dict:
    """What the node shows of itself, once it has begun."""
    shown = NodeProgress.latest
    if shown is None or shown.prompt != name:
        return {}
    return {"share": shown.share, "text": shown.text, "picture": _data_url(shown.picture)}


def _data_url(picture) -> str:
    if picture is None:
        return ""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _ended(entry: Mapping) -> dict:
    """Of a prompt in the host's history."""
    status = entry.get("status") or {}
    said = dict(message for message in status.get("messages", ()) if len(message) == 2)
    if "execution_interrupted" in said:
        return {"state": "stopped", "text": "stopped; nothing was left half-written"}
    if status.get("status_str") != "success":
        return {"state": "failed", "text": str(said.get("execution_error", {}).get("exception_message", "")).strip()
                or "it failed: the server's log says why"}
    made = (entry.get("outputs", {}).get(NODE, {}).get("vq_file") or [""])[0]
    return {"state": "done", "share": 1.0, "text": f"{made} is ready" if made else "done", "file": made}
