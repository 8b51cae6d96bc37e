"""Conversations: the tokens that are learned are those of the answers, whatever the template."""

import datasets
import numpy as np
import pytest

from datarax.tokens import Packer, chat, pad

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA = """{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\
{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>{% else %} {{ m.content }}</s>\
{% endif %}{% endfor %}"""
DEFAULT_SYSTEM = (
    """{% if messages[0].role != 'system' %}<|im_start|>system
You help.<|im_end|>
{% endif %}"""
    + CHATML
)
STRIPS = """{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
PLAIN = """{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}"""
MARKED = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{% else %}{{ m.content }}<|im_end|>
{% endif %}{% endfor %}"""
UNSTABLE = """{% for m in messages %}{{ m.role }}: {% if not loop.last %}(earlier) {% endif %}\
{{ m.content }} {% endfor %}"""

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "two plus two"},
    {"role": "assistant", "content": " four "},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "a lot"},
]


@pytest.fixture(scope="module")
def tokenizer_of():
    made = tokenizers.ByteLevelBPETokenizer()
    words = "two plus two is four user assistant system thanks a lot be brief You help INST SYS "
    special = ["<|im_start|>", "<|im_end|>"]
    made.train_from_iterator([words] * 40, 360, show_progress=False, special_tokens=special)

    def tokenizer(template):
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer)
        fast.chat_template = template
        return fast

    return tokenizer


def learned_text(tokenizer, row):
    return tokenizer.decode([t for t, w in zip(row["input_ids"], row["weights"], strict=True) if w])


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, [" four <|im_end|>\n", "a lot<|im_end|>\n"]),
        (LLAMA, ["  four </s>", " a lot</s>"]),
        (DEFAULT_SYSTEM, [" four <|im_end|>\n", "a lot<|im_end|>\n"]),
        (STRIPS, ["four</assistant>\n", "a lot</assistant>\n"]),
        (MARKED, [" four <|im_end|>", "a lot<|im_end|>"]),
    ],
    ids=["chatml", "llama", "default system", "strips", "marked"],
)
def test_the_answers_are_learned_and_nothing_else(tokenizer_of, template, answers):
    tokenizer = tokenizer_of(template)
    for talk in (TALK, TALK[1:]):
        row = chat(tokenizer)({"messages": talk})
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        assert tokenizer.decode(row["input_ids"]) == text
        assert learned_text(tokenizer, row) == "".join(answers)
        last = chat(tokenizer, train_on="last")({"messages": talk})
        assert learned_text(tokenizer, last) == answers[-1]
        assert all(chat(tokenizer, train_on="all")({"messages": talk})["weights"])


def test_marks_give_the_masks_of_transformers(tokenizer_of):
    tokenizer = tokenizer_of(MARKED)
    want = tokenizer.apply_chat_template(
        TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    row = chat(tokenizer)({"messages": TALK})
    assert row["input_ids"] == want["input_ids"]
    assert row["weights"] == want["assistant_masks"]


# --- by brute force: each shape of a template written once more, in Python --------------------


def chatml(talk):
    """Yields the pieces of a text, and whether an answer's tokens are in them."""
    for m in talk:
        yield f"<|im_start|>{m['role']}\n", False
        yield f"{m['content']}<|im_end|>\n", m["role"] == "assistant"


def llama(talk):
    for m in talk:
        if m["role"] == "user":
            yield f"[INST] {m['content']} [/INST]", False
        elif m["role"] == "system":
            yield f"<<SYS>>{m['content']}<</SYS>>", False
        else:
            yield f" {m['content']}</s>", True


def default_system(talk):
    if talk[0]["role"] != "system":
        yield "<|im_start|>system\nYou help.<|im_end|>\n", False
    yield from chatml(talk)


def strips(talk):
    for m in talk:
        yield f"<{m['role']}>", False
        yield f"{m['content'].strip()}</{m['role']}>\n", m["role"] == "assistant"


def random_talk(rng, *, system):
    words = ["two", "plus", " four ", "is", "thanks  ", "a lot", "You", "\n", "é", "<s>", "?"]
    say = lambda: " ".join(rng.choice(words, rng.integers(1, 9)))  # noqa: E731
    roles = ["system"] * system + ["user", "assistant"] * int(rng.integers(1, 4))
    return [{"role": role, "content": say()} for role in roles]


SHAPES = {
    "chatml": (CHATML, chatml, False),
    "llama": (LLAMA, llama, False),
    "with a system prompt": (CHATML, chatml, True),
    "default system prompt": (DEFAULT_SYSTEM, default_system, False),
    "strips": (STRIPS, strips, False),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_those_of_the_template_written_in_python(tokenizer_of, shape):
    template, pieces, system = SHAPES[shape]
    tokenizer, rng = tokenizer_of(template), np.random.default_rng(0)
    for _ in range(25):
        talk = random_talk(rng, system=system)
        parts = list(pieces(talk))
        text = "".join(part for part, _ in parts)
        is_answer = np.repeat([answer for _, answer in parts], [len(part) for part, _ in parts])
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        row = chat(tokenizer)({"messages": talk})
        assert row["input_ids"] == encoded["input_ids"]
        # A token that reaches into the next turn is that turn's.
        want = [bool(is_answer[stop - 1]) for _, stop in encoded["offset_mapping"]]
        assert row["weights"] == want


def test_marks_give_the_masks_of_transformers_for_any_conversation(tokenizer_of):
    tokenizer, rng = tokenizer_of(MARKED), np.random.default_rng(1)
    for turn in range(25):
        talk = random_talk(rng, system=turn % 2)
        want = tokenizer.apply_chat_template(
            talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        row = chat(tokenizer)({"messages": talk})
        assert row == {"input_ids": want["input_ids"], "weights": want["assistant_masks"]}


def test_a_token_that_spans_two_turns_is_the_next_turns(tokenizer_of):
    tokenizer = tokenizer_of(PLAIN)
    talk = [{**m, "content": m["content"].strip()} for m in TALK]
    row = chat(tokenizer)({"messages": talk})
    ids = row["input_ids"]
    ends = np.cumsum([len(tokenizer.decode([token])) for token in ids])
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    for answer in (" four", " a lot"):
        start = text.index(f"assistant:{answer}") + len("assistant:")
        stop = start + len(answer) + 1
        want = (ends > start) & (ends <= stop)
        part = (ends > start - 3) & (ends <= stop + 5)
        assert (np.asarray(row["weights"])[part] == want[part]).all()
    assert learned_text(tokenizer, row) == " four a lot "


def test_prompts_with_completions_are_conversations(tokenizer_of):
    make = chat(tokenizer_of(CHATML))
    talk = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "four"}]
    want = make({"messages": [talk]})
    assert make({"prompt": ["two"], "completion": ["four"]}) == want
    assert make({"prompt": [talk[:1]], "completion": [talk[1:]]}) == want
    assert make({"prompt": "two", "completion": "four"}) == {k: v[0] for k, v in want.items()}


def test_a_dataset_and_a_stream_of_conversations_are_packed_and_padded(tokenizer_of):
    dataset = datasets.Dataset.from_dict({"messages": [TALK, TALK[1:], TALK[1:3]]})
    rows = dataset.map(chat(tokenizer_of(CHATML)), batched=True, remove_columns=["messages"])
    counts = [sum(weights) for weights in rows["weights"]]
    packed = rows.map(Packer(64), batched=True)
    assert np.sum(packed["weights"][:]) == sum(counts)
    padded = rows.map(pad, batched=True, fn_kwargs={"length": 64})
    assert np.sum(padded["weights"][:], axis=1).tolist() == counts
    stream = dataset.to_iterable_dataset().map(
        chat(tokenizer_of(CHATML)), batched=True, remove_columns=["messages"]
    )
    assert [row["weights"] for row in stream] == rows["weights"][:]


@pytest.mark.parametrize(
    ("template", "talk", "words"),
    [
        (CHATML, TALK[:2], "Conversation 1 of the batch .*has no token to learn.*ds.filter"),
        (UNSTABLE, TALK, r"up to turn 2 \(assistant\) in another way.*generation %}"),
        ("{{ raise_exception('roles must alternate') }}", TALK, "refuses it: roles must alternate"),
        (CHATML, [], "Conversation 1 of the batch"),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_named(tokenizer_of, template, talk, words):
    good = [TALK[:3]] if template == CHATML else [talk]
    make = chat(tokenizer_of(template))
    with pytest.raises(ValueError, match=words.replace("1 of", f"{len(good)} of")):
        make({"messages": [*good, talk] if template == CHATML else good})


def test_tokenizers_without_a_template_are_refused(tokenizer_of):
    with pytest.raises(ValueError, match=r"set tokenizer\.chat_template"):
        chat(tokenizer_of(None))
    with pytest.raises(TypeError, match="without apply_chat_template"):
        chat(object())
    with pytest.raises(ValueError, match="train_on='answers': expected"):
        chat(tokenizer_of(CHATML), train_on="answers")
    with pytest.raises(ValueError, match=r"'text'.*rename_column"):
        chat(tokenizer_of(CHATML))({"text": ["a"]})
