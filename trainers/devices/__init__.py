"""Devices: how arrays lie on them, and how processes agree."""

from trainers.devices.distributed import initialize as initialize
from trainers.devices.layout import Layout as Layout
