"""How long an object's methods take, added up in its attribute `seconds`."""

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

_Method = TypeVar("_Method", bound=Callable[..., Any])


def timed(method: _Method) -> _Method:
    """Returns a method that adds the time of each call to `self.seconds`."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any) -> Any:
        begun = time.perf_counter()
        try:
            return method(self, *arguments)
        finally:
            self.seconds += time.perf_counter() - begun

    return cast(_Method, call)
