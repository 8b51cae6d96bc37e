"""Order: which record stands at which position; arithmetic, without data and without state."""

from datarax.order.epochs import epoch_seed as epoch_seed
from datarax.order.epochs import key_seed as key_seed
from datarax.order.epochs import steps_per_epoch as steps_per_epoch
from datarax.order.order import Order as Order
from datarax.order.order import run_on as run_on
from datarax.order.order import window as window
from datarax.order.permutation import index_shuffle as index_shuffle
