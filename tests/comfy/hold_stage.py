"""A custom node for the servers of these tests: the next run of a stage waits, after its first step, to be stopped.

How long a stage takes depends on the machine, and how soon a stop arrives on what else runs there: coding the tiny
checkpoint takes five seconds, decompressing it one. Held, a stage cannot be over before the stop is there.
"""
import importlib
import sys
import time

PATIENCE = 120                             # seconds; a stop that never comes fails the test, the server lives on
HELD = "(held)"                            # what the node's text then ends with


class HoldStage:
    """stage: by its name in the node's text; empty: none."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "hold", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        """One name."""
        return {"required": {"stage": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        """Never cached."""
        return float("nan")

    def hold(self, stage):
        """Replace Progress.advance of the pack under test."""
        pack = next(name for name in sys.modules if name.endswith("vq-pack"))
        progress = importlib.import_module(f"{pack}.vq_core.progress")
        real = getattr(progress, "usual", None) or progress.Progress.advance
        progress.usual = real

        def advance(self, *args, **named):
            real(self, *args, **named)
            if self.stage == stage and args[:1] != (0,):     # a run that goes on says how far it was, at first 0
                self.detail = f"{self.detail} {HELD}"
                self._tell(force=True)
                end = time.monotonic() + PATIENCE
                while not self._should_stop() and time.monotonic() < end:
                    time.sleep(0.02)

        progress.Progress.advance = advance if stage else real
        return {}


NODE_CLASS_MAPPINGS = {"HoldStage": HoldStage}
