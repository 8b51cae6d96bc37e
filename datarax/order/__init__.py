"""Order: which record stands at which position; arithmetic, without data and without state."""

from datarax.order.epochs import epoch_seed, key_seed, steps_per_epoch
from datarax.order.order import Order, run_on, window
from datarax.order.permutation import index_shuffle

__all__ = [
    "Order",
    "epoch_seed",
    "index_shuffle",
    "key_seed",
    "run_on",
    "steps_per_epoch",
    "window",
]
