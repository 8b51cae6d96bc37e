"""Texts as rows of tokens of one length."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from datarax.columns.transform import TransformFunction
from datarax.errors import expect_between
from datarax.transforms.column import value_of

_LONGEST = 2**24  # tokens


def tokenize(tokenizer: Any, length: int, *, column: str = "text") -> TransformFunction:
    """Returns a transform that makes `input_ids` and `attention_mask` of a text, which it drops.

    A text with more tokens is cut, and one with fewer is padded with the tokenizer's own id, or 0.
    A fast tokenizer is copied, since setting its length on several threads at once is an error.

    Args:
        tokenizer: A tokenizer of `transformers` or `tokenizers`, or any function from a text to
            token ids.
        length: Tokens in a row: both columns are `int32` of shape `(length,)`.
        column: The column of the text.

    Raises:
        TypeError: If `tokenizer` is none of these.
        ValueError: If `length` is out of range.

    Example:
        >>> letters = lambda text: [ord(letter) - 96 for letter in text]
        >>> tokenize(letters, 4)({"text": "abc", "label": 0})["input_ids"]
        array([1, 2, 3, 0], dtype=int32)
    """
    expect_between("length", length, 1, _LONGEST)
    padding = getattr(tokenizer, "pad_token_id", None)
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(fast, "enable_truncation"):
        if padding is None and fast.padding:
            padding = fast.padding["pad_id"]
        tokenizer = copy.deepcopy(fast)
        tokenizer.enable_truncation(length)
        tokenizer.no_padding()
    elif not callable(tokenizer):
        raise TypeError(
            f"tokenizer={tokenizer!r:.60}: expected a tokenizer of transformers or tokenizers, or "
            "a function from a text to its token ids."
        )
    return _Tokenize(tokenizer, length, padding or 0, column)


@dataclass(frozen=True)
class _Tokenize:
    tokenizer: Any
    length: int
    padding: int
    column: str

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        text = value_of(record, self.column, "tokenize")
        if not isinstance(text, str):
            raise TypeError(
                f"tokenize: column {self.column!r} holds {text!r:.60}, expected text. Choose "
                "another with column=, or filter such rows out: ds = ds.filter(...)."
            )
        ids = self._ids(text)
        row = np.full(self.length, self.padding, np.int32)
        row[: len(ids)] = ids
        mask = np.arange(self.length) < len(ids)
        rest = {name: value for name, value in record.items() if name != self.column}
        return {**rest, "input_ids": row, "attention_mask": mask.astype(np.int32)}

    def _ids(self, text: str) -> Any:
        if hasattr(self.tokenizer, "enable_truncation"):
            return self.tokenizer.encode(text).ids
        if hasattr(self.tokenizer, "pad_token_id"):  # written in Python, of transformers
            return self.tokenizer(text, truncation=True, max_length=self.length)["input_ids"]
        return self.tokenizer(text)[: self.length]
