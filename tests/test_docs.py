"""The documentation: its code runs, it names everything that is public, and it builds."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import datarax
import trainers
from tests.support.pages import ROOT, blocks, pages, write_data
from tests.test_faces import FACES

PAGES = pages()
QUICK = {  # the default suite has seconds for pages; the others are run by -m slow
    "docs/concepts/order.md",
    "docs/concepts/shards.md",
    "docs/concepts/streams.md",
    "docs/howto/own_data.md",
    "docs/start.md",
}
PUBLIC = [  # modules whose names are public, beside the faces: CHANGELOG.md says so
    "datarax.errors",
    "datarax.stages",
    "trainers.callbacks",
    "trainers.metrics",
    "trainers.writers",
]


def modules():
    for package in (datarax, trainers):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name):
    module = importlib.import_module(name)
    # Docstrings may use what a reader has imported anyway.
    names = {"datasets": datasets, "jax": jax, "jnp": jnp, "np": np, "nnx": nnx}
    public = {k: v for k, v in vars(datarax).items() if not k.startswith("_")}
    public |= {k: v for k, v in vars(trainers).items() if not k.startswith("_")}
    result = doctest.testmod(module, extraglobs=names | public | vars(module), verbose=False)
    assert result.failed == 0


# --- pages -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pages")
    write_data(directory)
    return directory


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page in QUICK else pytest.mark.slow)
        for page in PAGES
        if list(blocks(PAGES[page]))
    ],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, data, tmp_path, monkeypatch):
    for folder in data.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": page}
    for number, (code, needs) in enumerate(blocks(PAGES[page])):
        if needs is None or importlib.util.find_spec(needs):
            with warnings.catch_warnings():
                if needs:  # what another library warns of is its own
                    warnings.simplefilter("ignore")
                exec(compile(code, f"{page}, block {number}", "exec"), names)


def exported():
    """Returns every name that a face shows, with what it is."""
    return {
        f"{face.__name__}.{name}": getattr(face, name) for face in FACES for name in face.__all__
    }


def in_public_modules():
    """Returns what the modules define whose names are public."""
    found = {}
    for name in PUBLIC:
        for own, value in vars(importlib.import_module(name)).items():
            is_ours = inspect.isclass(value) or inspect.isfunction(value)
            if is_ours and value.__module__ == name and not own.startswith("_"):
                found[f"{name}.{own}"] = value
    return found


def test_every_public_name_has_an_entry_in_the_reference():
    reference = "\n".join(text for page, text in PAGES.items() if "/reference/" in page)
    entries = re.findall(r"^::: (\S+)$", reference, flags=re.MULTILINE)
    found = [pkgutil.resolve_name(entry) for entry in entries]
    assert len(entries) == len(set(map(id, found)))
    public = exported() | in_public_modules()
    assert {name for name, value in public.items() if not any(value is x for x in found)} == set()


def test_every_public_name_is_in_a_page_or_an_example():
    told = [text for page, text in PAGES.items() if "/reference/" not in page]
    told += [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    words = set(re.findall(r"\w+", "\n".join(told)))
    assert {name for name in exported() if name.rpartition(".")[2] not in words} == set()


def test_links_between_pages_lead_to_files():
    lost = {
        (page, link)
        for page, text in PAGES.items()
        for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)", text)
        if not (ROOT / page).parent.joinpath(link).exists()
    }
    assert lost == set()


def test_every_message_of_the_packages_is_in_a_page():
    spec = importlib.util.spec_from_file_location("messages", ROOT / "docs" / "messages.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    text = hook.on_page_markdown(PAGES["docs/faq.md"])
    assert "shuffles fully" not in text  # a docstring is no message
    assert "is no multiple of shards=" in text
    assert text.count("\n- ValueError:") > 150


# --- the site --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")  # of the extra `docs`, which `test` includes
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", directory]
    built = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return directory


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_other_hosts(site: Path):
    found = set()
    for page in site.rglob("*.html"):
        text = page.read_text()
        loads = re.findall(
            r"<(?:script|img|link|iframe|source)[^>]*?(?:src|href)=\"?([^\s\">]+)", text
        )
        found |= {link for link in loads if "//" in link}
    assert found == set()


@pytest.mark.slow
def test_every_message_of_the_packages_is_in_the_site(site: Path):
    text = (site / "faq.html").read_text()
    assert "shuffles fully" not in text  # a docstring is no message
    assert "is no multiple of shards=" in text
    assert text.count("<li>ValueError:") > 150
