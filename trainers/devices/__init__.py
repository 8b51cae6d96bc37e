"""Devices: how arrays lie on them, and how processes agree."""

from trainers.devices.distributed import initialize
from trainers.devices.layout import Layout

__all__ = ["Layout", "initialize"]
