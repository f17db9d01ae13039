"""A clock with a constant rate under frames that have times of their own."""

from __future__ import annotations

_TOLERANCE = 0.75
"""Periods between a frame and the next tick beyond which ticks are held or the frame is dropped.

At half a period, jitter of frames that lie midway between two ticks would drop and hold in turn;
the quarter above it is the hysteresis that ends this.
"""
_RESTART_S = 1.0
"""A step back beyond this is a clock that starts anew, not a frame out of order."""
_LONGEST_HOLD_S = 600.0
"""A step beyond this is a mistake in the times."""


class Clock:
    """Brings the frames' own times onto ticks that are one period apart."""

    def __init__(self, rate_hz: float, time_base_s: float) -> None:
        self._rate_hz = rate_hz
        self._time_base_s = time_base_s
        self._next = 0
        self._origin: float | None = None
        self._latest = 0

    def advance(self, pts: int | None) -> int:
        """How many ticks a frame ends: its own, last, and those that passed before; 0 drops it."""
        tick = self._next if pts is None else self._tick(pts)
        ticks = max(0, tick + 1 - self._next)
        self._next += ticks
        return ticks

    def _tick(self, pts: int) -> int:
        period = 1 / (self._rate_hz * self._time_base_s)
        step_s = (pts - self._latest) * self._time_base_s
        if self._origin is None or not -_RESTART_S <= step_s <= _LONGEST_HOLD_S:
            self._origin = pts - self._next * period
        self._latest = pts
        place = (pts - self._origin) / period
        return self._next if abs(place - self._next) <= _TOLERANCE else round(place)


def crowding(dropped: int, rate_hz: float) -> str:
    """What to tell a user of frames that fell into the tick of another."""
    return (
        f"{dropped} frames fell into the same tick as another at {rate_hz:g} frames a second and "
        "were left out: is its rate variable, or the container's clock too coarse?"
    )
