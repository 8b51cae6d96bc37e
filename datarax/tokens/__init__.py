"""Tokens: lists of them packed or padded to rows of one length, and conversations as tokens.

`tokenizers` and `transformers` make the tokens. `Packer`, `pad` and `chat` are functions for
`map(..., batched=True)` of a `datasets.Dataset` or `datasets.IterableDataset`, so that Hugging Face
caches their results, and a stream resumes exactly.
"""

from datarax.tokens.chat import chat
from datarax.tokens.packing import Packer, pack
from datarax.tokens.padding import pad

__all__ = ["Packer", "chat", "pack", "pad"]
