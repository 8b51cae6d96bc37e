"""The order of an eager source's records, the position in it, and the state that says both."""

from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from datarax.errors import expect_between
from datarax.module import DataraxModule, DataraxModuleConfig, expect_dict

STATE_VERSION = 1


class OrderedRecords(DataraxModule):
    """What `EagerSourceBase` is beside its columns: where it stands, in which order.

    Args:
        config: The subclass's configuration.
        length: The number of records.
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order, from 0 to 2**32 - 1.
        fingerprint: Fingerprint of the data's content.
        revision: What the data was resolved to, such as a commit of the Hub.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If `seed` is out of range.
    """

    def __init__(
        self,
        config: DataraxModuleConfig,
        *,
        length: int,
        shuffle: bool,
        seed: int,
        fingerprint: str,
        revision: str | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        super().__init__(config, rngs=rngs, name=name)
        expect_between("seed", seed, 0, 2**32 - 1)
        self.length = length
        self.index = nnx.Variable(0)
        self.epoch = nnx.Variable(0)
        self._shuffle = bool(shuffle)  # of NumPy's kinds the state could not be JSON
        self._seed = int(seed)
        self.fingerprint = fingerprint
        self.revision = revision
        self._resumes = nnx.Variable(False)  # whether a `for` goes on where `set_state` put it

    def __len__(self) -> int:
        return self.length

    # --- order -----------------------------------------------------------------------------------

    @property
    def is_random_order(self) -> bool:
        """Whether each epoch has its own random order."""
        return self._shuffle

    @property
    def seed(self) -> int:
        """Seed of the order; epoch `e` follows `(seed + e) % 2**32`."""
        return self._seed

    def order_seed(self) -> np.uint32 | None:
        """Returns the seed of the random order, or None for the stored order."""
        return np.uint32(self._seed) if self.is_random_order else None

    def set_random_order(self, enabled: bool) -> None:
        """Sets whether each epoch has its own random order, from the next batch on."""
        self._shuffle = bool(enabled)

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the start of epoch 0.

        Args:
            seed: A new seed of the order; None keeps the present one.

        Raises:
            ValueError: If `seed` is not from 0 to 2**32 - 1.
        """
        if seed is not None:
            expect_between("seed", seed, 0, 2**32 - 1)
            self._seed = int(seed)
        self.move(0, 0)
        self._resumes.set_value(False)

    # --- position --------------------------------------------------------------------------------

    def _position(self) -> tuple[int, int]:
        return int(self.epoch.get_value()), int(self.index.get_value())

    def begin_epoch(self) -> tuple[int, int]:
        """Returns the (epoch, index) at which a `for` begins: see `__iter__`."""
        epoch, index = self._position()
        if index and not self._resumes.get_value():
            epoch, index = epoch + 1, 0
        self._resumes.set_value(False)
        return epoch, index

    def move(self, epoch: int | jax.Array, index: int | jax.Array) -> None:
        """Sets the position: the next record is the one at `index` of `epoch`."""
        self.epoch.set_value(epoch)
        self.index.set_value(index)

    # --- state -----------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Returns the position, the order and the data's fingerprint: JSON-able, never the data."""
        epoch, index = self._position()
        state = {
            "version": STATE_VERSION,
            "epoch": epoch,
            "index": index,
            "order": {"shuffle": self._shuffle, "seed": self._seed},
            "fingerprint": self.fingerprint,
        }
        return state if self.revision is None else state | {"revision": self.revision}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned, of this source or of one with the same data.

        Args:
            state: The dict, also after a round trip through JSON.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure differs, or it is the state of other data.
        """
        expect_dict(state)
        own = self.get_state()
        # The content counts, not where it came from: a copy of a Hub dataset has no revision.
        same = state.keys() - {"revision"} == own.keys() - {"revision"}
        if not same or state.get("version") != STATE_VERSION:
            raise ValueError(
                f"The state has {sorted(state)} of version {state.get('version')}; {self._label()} "
                f"reads {sorted(own)} of version {STATE_VERSION}, as its get_state() returns them."
            )
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"The state is of other data: its fingerprint is {state['fingerprint']}, that of "
                f"{self._label()} is {self.fingerprint}. Restore it with the data it was saved "
                "with, or begin anew with reset()."
            )
        epoch, index, shuffle, seed = _read_position(state, self.length)
        self._shuffle, self._seed = shuffle, seed
        self.move(epoch, index)
        self._resumes.set_value(True)

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this source; a `for` begins the next epoch, as after a `break`."""
        self.move(state["epoch"], state["index"])

    def _settings_to(self, copy: Self) -> Self:
        copy._shuffle, copy._seed = self._shuffle, self._seed
        return super()._settings_to(copy)

    def _label(self) -> str:
        return self.name or type(self).__name__


def _read_position(state, length) -> tuple[int, int, bool, int]:
    try:
        expect_between("epoch", state["epoch"], 0, 2**31 - 1)
        expect_between("index", state["index"], 0, length)
        if state["order"].keys() != {"shuffle", "seed"}:
            shards = state["order"].get("shards")
            raise ValueError(
                f"its order is {state['order']}, not one of shuffle and seed. "
                f"Restore it with Pipeline(..., shards={shards})."
            )
        shuffle, seed = bool(state["order"]["shuffle"]), state["order"]["seed"]
        expect_between("seed", seed, 0, 2**32 - 1)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The state is not one that get_state() returned: {error}") from error
    return int(state["epoch"]), int(state["index"]), shuffle, int(seed)
