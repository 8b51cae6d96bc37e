"""The loop's parts: cadence, clock, signals, evaluation, and the hunt for a bad batch."""

from trainers.loop.plan import Plan

__all__ = ["Plan"]
