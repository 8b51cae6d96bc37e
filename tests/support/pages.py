"""Pages of the documentation: their code, and small data under the names that they load."""

import re
import textwrap
from pathlib import Path

import datasets
import numpy as np

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```python([^\n]*)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)


def pages():
    """Returns the pages by name: the README and the site's."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in found}


def blocks(text):
    """Returns the code of a page's ```python blocks, each with the library that it needs, or None.

    A block of another library's program says so: ```python title="Keras".
    """
    needs = {"Keras": "keras", "Hugging Face Trainer": "torch", "Grain": "grain"}
    for _, info, code in BLOCK.findall(text):
        title = re.search(r'title="([^"]*)"', info)
        yield textwrap.dedent(code), needs.get(title[1]) if title else None


def write_data(directory):
    """Writes small data under the names that pages load, from the Hub or where they are run."""
    rng = np.random.default_rng(0)
    for split, rows in {"train": 512, "test": 128}.items():
        labels = rng.integers(0, 10, rows)
        images = rng.integers(0, 60, (rows, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 4] += 150
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=[str(i) for i in range(10)]),
            }
        )
        digits = datasets.Dataset.from_dict({"image": list(images), "label": labels}, features)
        digits.to_parquet(directory / "ylecun" / "mnist" / f"{split}-0.parquet")

        words = np.array(
            ["a", "the", "film", "was", "very", "good", "bad", "long", "story", "about"]
        )
        texts = [" ".join(rng.choice(words, 20 + i % 30)) for i in range(rows)]
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        )
        reviews = {"text": texts, "label": np.arange(rows) % 2}
        reviews = datasets.Dataset.from_dict(reviews, features)
        reviews.to_parquet(directory / "stanfordnlp" / "imdb" / f"{split}-0.parquet")
        stories = reviews.select_columns("text")
        stories.to_parquet(directory / "roneneldan" / "TinyStories" / f"{split}-0.parquet")
