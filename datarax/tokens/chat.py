"""Conversations as tokens, and which of them a model learns to write."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from datarax.errors import listed

Messages = Sequence[Mapping[str, Any]]

_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def chat(
    tokenizer: Any, *, train_on: Literal["assistant", "last", "all"] = "assistant"
) -> Callable[[Mapping[str, Any]], dict[str, list]]:
    """Returns a function that turns conversations into tokens: one for `map(..., batched=True)`.

    A conversation is a row's `messages`, or its `prompt` and `completion`: lists of messages, or
    texts of a user and an assistant. A chat template that marks what an assistant generates
    (`{% generation %}`) says itself which tokens are learned. Otherwise the tokens of an answer are
    those by which the conversation up to the answer is longer than the one before it, its header
    included in the latter (`add_generation_prompt=True`).

    Args:
        tokenizer: Has `apply_chat_template` as the tokenizers of `transformers` have it.
        train_on: The tokens to learn: those of all answers, of the last one, or all tokens.

    Returns:
        A function from a batch, or a single row, to `input_ids`, a list of integers a conversation,
        and `weights`, a list of floats: 1 on each token to learn, 0 elsewhere.

    Raises:
        TypeError: If the tokenizer has no `apply_chat_template`.
        ValueError: If it has no template; and from the function, if a conversation has no token to
            learn, the template refuses it, or the template renders the beginning of a conversation
            in another way once more messages follow.

    Example:
        >>> class Words:  # a toy with the method of a tokenizer of `transformers`
        ...     def apply_chat_template(self, messages, tokenize, add_generation_prompt=False, **_):
        ...         text = " ".join(f"<{m['role']}> {m['content']}" for m in messages)
        ...         text += " <assistant>" if add_generation_prompt else ""
        ...         return [hash(w) % 50 for w in text.split()] if tokenize else text
        >>> talk = [{"role": "user", "content": "2 + 2 ?"}, {"role": "assistant", "content": "4"}]
        >>> chat(Words())({"messages": [talk]})["weights"]
        [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    """
    if not callable(getattr(tokenizer, "apply_chat_template", None)):
        raise TypeError(
            f"The tokenizer is a {type(tokenizer).__name__} without apply_chat_template: give one "
            "of transformers.AutoTokenizer.from_pretrained(...)."
        )
    if getattr(tokenizer, "chat_template", "") is None:
        raise ValueError(
            "The tokenizer has no chat template: set tokenizer.chat_template, or load the "
            "tokenizer of a model that was trained on conversations."
        )
    if train_on not in ("assistant", "last", "all"):
        raise ValueError(f"train_on={train_on!r}: expected 'assistant', 'last' or 'all'.")
    learned = _by_marks if _MARK.search(_template(tokenizer)) else _by_prefixes

    def one(messages: Messages, number: int) -> tuple[list[int], list[float]]:
        try:
            ids, answers = learned(tokenizer, messages)
        except _UnstableError as error:
            raise ValueError(f"{_named(messages, number)}: {error}") from None
        except ImportError:  # of jinja2, which says itself how to install it
            raise
        except Exception as error:  # a template is a program, and raises whatever it likes
            raise ValueError(
                f"{_named(messages, number)}: the chat template refuses it: {error}"
            ) from error
        weights = np.zeros(len(ids), np.float32)
        if train_on == "all":
            weights[:] = 1
        for start, stop in answers[-1:] if train_on == "last" else answers:
            weights[start:stop] = 1
        if not weights.any():
            raise ValueError(
                f"{_named(messages, number)} has no token to learn: no answer of an assistant. "
                "Leave it out with ds.filter(...), or write train_on='all'."
            )
        return ids, weights.tolist()

    def tokenized(batch: Mapping[str, Any]) -> dict[str, list]:
        conversations, is_batch = _conversations(batch)
        done = [one(messages, number) for number, messages in enumerate(conversations)]
        ids, weights = [ids for ids, _ in done], [weights for _, weights in done]
        if not is_batch:
            ids, weights = ids[0], weights[0]
        return {"input_ids": ids, "weights": weights}

    return tokenized


class _UnstableError(Exception):
    """A template renders a beginning in another way once more messages follow."""


def _template(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # named templates, of which transformers takes the default
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _conversations(batch: Mapping[str, Any]) -> tuple[list[Messages], bool]:
    """Returns the conversations of a batch, or of a row, and whether it is a batch."""
    if "messages" in batch:
        given = batch["messages"]
        is_batch = not (len(given) and isinstance(given[0], Mapping))
        return (list(given) if is_batch else [given]), is_batch
    if "prompt" not in batch or "completion" not in batch:
        raise ValueError(
            f"There are the columns {listed(batch)}: expected 'messages', or 'prompt' and "
            "'completion'. Rename yours, as in ds.rename_column('conversations', 'messages')."
        )
    prompts, completions = batch["prompt"], batch["completion"]
    is_batch = not (isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], Mapping)))
    if not is_batch:
        prompts, completions = [prompts], [completions]
    pairs = zip(prompts, completions, strict=True)
    return [[*_said("user", p), *_said("assistant", c)] for p, c in pairs], is_batch


def _said(role: str, text: str | Messages) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _named(messages: Messages, number: int) -> str:
    first = messages[0] if len(messages) else {"role": "nobody", "content": ""}
    text = f"{first.get('role')}: {first.get('content')}"
    return f"Conversation {number} of the batch ({text[:60]!r}...)"


# --- the tokens of answers: two ways to find them ---------------------------------------------


def _by_marks(tokenizer: Any, messages: Messages) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns a conversation's tokens, and the ranges that the template marks as generated."""
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = np.asarray(rendered["assistant_masks"], np.int8)
    edges = np.flatnonzero(np.diff(mask, prepend=0, append=0)).tolist()
    return list(rendered["input_ids"]), list(zip(edges[::2], edges[1::2], strict=True))


def _by_prefixes(tokenizer: Any, messages: Messages) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns a conversation's tokens, and the ranges by which each answer makes it longer."""
    whole = _ids(tokenizer, messages)
    answers, text, offsets = [], "", None
    for turn, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        span = _span(lambda *part: _ids(tokenizer, *part), messages, turn, whole)
        if span is None:
            # The texts may begin alike all the same, where one token spans the end of a message.
            text = text or _text(tokenizer, messages)
            offsets = _offsets(tokenizer, text, whole) if offsets is None else offsets
            span = _span(lambda *part: _text(tokenizer, *part), messages, turn, text)
            if span is None or offsets is None:
                raise _UnstableError(
                    f"the chat template renders the conversation up to turn {turn} (assistant) in "
                    "another way once more turns follow, so nobody can tell which tokens are the "
                    "answer's. Mark them in the template with {% generation %} ... "
                    "{% endgeneration %}, or give only conversations that end there."
                )
            # A token that reaches into the next turn is that turn's.
            inside = np.flatnonzero((offsets[:, 1] > span[0]) & (offsets[:, 1] <= span[1]))
            span = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        answers.append(span)
    return whole, answers


def _span(
    render: Callable[..., Any], messages: Messages, turn: int, whole: Any
) -> tuple[int, int] | None:
    """Returns where an answer is in `whole`, a text or a list of tokens; None if it is not told."""
    before = render(messages[:turn]) if turn else whole[:0]
    after = render(messages[: turn + 1])
    if whole[: len(before)] != before or whole[: len(after)] != after:
        return None
    # A template's prompt may go on where this answer does not ("<think>"): what both have counts.
    prompt = render(messages[:turn], True) if turn else before
    shared = 0
    for own, other in zip(prompt, whole, strict=False):
        if own != other:
            break
        shared += 1
    return max(len(before), shared), len(after)


def _ids(tokenizer: Any, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=add_generation_prompt
    )
    return list(rendered["input_ids"] if isinstance(rendered, Mapping) else rendered)


def _text(tokenizer: Any, messages: Messages, add_generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def _offsets(tokenizer: Any, text: str, ids: list[int]) -> np.ndarray | None:
    """Returns the first and last character of each token, shape `(tokens, 2)`, where known."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(encoded["input_ids"]) != ids:
        return None
    return np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
