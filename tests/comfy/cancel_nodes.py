"""Custom nodes for server_cancel.py: one holds the next job in the middle of a stage until it is told to stop, one
looks at what is left afterwards in the server's process.
"""
import collections
import gc
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import comfy.model_management as management
import torch
from server import PromptServer

PATIENCE = 120                             # seconds, as in hold_stage.py
HELD = "(held)"
put_back = []                              # what takes back what HoldAt replaced
counted = {"after": 0}                     # calls of the held function since it was let go


def module_of_pack(name):
    """A module of the pack under test by its path in it; anything else by its own name."""
    root = next(name for name in sys.modules if name.endswith("vq-pack"))
    return importlib.import_module(f"{root}.{name}" if name.startswith(("nodes.", "vq_core.")) else name)


def hold():
    """Tell the client, then wait for its stop."""
    PromptServer.instance.send_progress_text(HELD, "held")
    end = time.monotonic() + PATIENCE
    while not management.processing_interrupted() and time.monotonic() < end:
        time.sleep(0.02)


class HoldAt:
    """point: "stage|NAME|SHARE" after the step at which so much of a stage is done, "mark|NAME|SHARE" to tell the
    client there and work on, "call|MODULE|FUNCTION|N" after the N-th call of a function; empty: nothing is replaced.
    """

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "replace", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        """One point."""
        return {"required": {"point": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        """Never cached."""
        return float("nan")

    def replace(self, point):
        """Replace what has to be held."""
        while put_back:
            put_back.pop()()
        kind, *more = point.split("|")
        if kind == "call":
            self.at_call(*more)
        elif kind:
            self.at_stage(kind, *more)
        return {}

    def at_stage(self, kind, stage, share):
        """Progress.advance, once."""
        progress, seen = module_of_pack("vq_core.progress").Progress, []
        real = progress.advance

        def advance(self, *args, **named):
            real(self, *args, **named)
            if self.stage.startswith(stage) and self.total and self.done >= float(share) * self.total and not seen:
                seen.append(True)
                hold() if kind == "stage" else PromptServer.instance.send_progress_text(HELD, "held")

        put(progress, "advance", advance)

    def at_call(self, module, path, number):
        """Any function; those that came after are counted."""
        *inside, name = path.split(".")
        owner = module_of_pack(module)
        for part in inside:
            owner = getattr(owner, part)
        real, calls = getattr(owner, name), []
        counted["after"] = 0

        def held(*args, **named):
            result = real(*args, **named)
            calls.append(None)
            if len(calls) == int(number):
                hold()
            counted["after"] += len(calls) > int(number)
            return result

        put(owner, name, staticmethod(held) if isinstance(owner.__dict__[name], staticmethod) else held)


def put(owner, name, value):
    """Replace an attribute until the next HoldAt."""
    real = owner.__dict__[name]
    setattr(owner, name, value)
    put_back.append(lambda: setattr(owner, name, real))


class Look:
    """Garbage collected: bytes of all tensors and how many there are of a kind; threads of the pack, open files; what
    the host counts as loaded.
    """

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "look", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        """None."""
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls, **_):
        """Never cached."""
        return float("nan")

    def look(self):
        """One line of JSON."""
        threads = [one.name for one in threading.enumerate() if one.name.startswith("vqpack")]
        for _ in range(2):                 # what a graph of gradients holds goes after the graph
            gc.collect()
        storages = {}
        for tensor in [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]:
            try:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = (storage.nbytes(), f"{tensor.dtype} {list(tensor.shape)}")
            except (RuntimeError, NotImplementedError):    # a shell: its parts are tensors too
                continue
        found = {"bytes": sum(nbytes for nbytes, _ in storages.values()),
                 "kinds": collections.Counter(kind for _, kind in storages.values()),
                 "threads": threads, "open": opened(), "after": counted["after"],
                 "loaded": sum(one.model_loaded_memory() for one in management.current_loaded_models
                               if one.model is not None)}
        return {"ui": {"text": [json.dumps(found)]}}


def opened():
    """Names of open files in the models folder."""
    folder = os.environ["VQPACK_TEST_MODELS"]
    links = Path("/proc/self/fd")
    names = [os.readlink(link) for link in links.iterdir() if link.exists()] if links.is_dir() else []
    return [name for name in names if name.startswith(folder)]


NODE_CLASS_MAPPINGS = {"HoldAt": HoldAt, "Look": Look}
