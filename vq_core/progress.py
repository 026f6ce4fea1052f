"""One Progress object for command line and nodes alike: stage, share done, time left, interruption."""
import time
from collections.abc import Callable

from .errors import Interrupted


class Progress:
    """Counts work units and tells a listener.

    listener(stage: str, done: float, total: float, detail: str, seconds_left: float | None) is called at most
    every `interval` seconds and at each stage's start and end. should_stop() -> bool is asked at every advance.
    """

    def __init__(self, listener: Callable | None = None, should_stop: Callable[[], bool] | None = None,
                 interval: float = 0.2):
        self._listener, self._should_stop, self._interval = listener, should_stop, interval
        self.stage, self.done, self.total, self.detail = "", 0.0, 0.0, ""
        self._started = self._told = 0.0
        self._estimate: float | None = None

    def start(self, stage: str, total: float, detail: str = "", seconds: float | None = None) -> None:
        """Begin a stage of `total` units (weights, bytes, ...); seconds: an estimate for the stage."""
        self.stage, self.done, self.total, self.detail = stage, 0.0, float(total), detail
        self._estimate = seconds
        self._started = time.monotonic()
        self.check()
        self._tell(force=True)

    def advance(self, units: float = 0.0, detail: str | None = None) -> None:
        """Add finished units; raises Interrupted if the user asked to stop."""
        self.done = min(self.total, self.done + units)
        if detail is not None:
            self.detail = detail
        self.check()
        self._tell()

    def finish(self) -> None:
        """End the stage."""
        self.done = self.total
        self._tell(force=True)

    def check(self) -> None:
        """Raise Interrupted if the user asked to stop."""
        if self._should_stop is not None and self._should_stop():
            raise Interrupted(f"stopped during {self.stage or 'start'}; nothing was left half-written")

    def seconds_left(self) -> float | None:
        """From the stage's own speed so far; before two hundredths are done the estimate it started with, or None."""
        elapsed = time.monotonic() - self._started
        if self.total <= 0 or self.done < 0.02 * self.total:
            return None if self._estimate is None else max(0.0, self._estimate - elapsed)
        return elapsed * (self.total - self.done) / self.done

    def _tell(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._listener is None or (not force and now - self._told < self._interval):
            return
        self._told = now
        self._listener(self.stage, self.done, self.total, self.detail, self.seconds_left())
