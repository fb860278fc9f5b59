"""Where other people's checkpoints lie, a folder or the Hugging Face Hub: which files there are, and parts of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mhc_train.data.retry import Retry
from mhc_train.errors import CheckpointError, DataError

PATIENCE = Retry(attempts=3, first_delay=0.5, advice="Check the network, or name a folder that has been downloaded.")
API_SECONDS, READ_SECONDS = 3, 30
PARTIAL = 206
"""HTTP's answer that is the range asked for, and not the whole."""
Result = TypeVar("Result")
HUB_NAME = re.compile(r"(?:hf://)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    @cached_property
    def files(self) -> dict[str, int | None]:
        """What lies in it, without folders, each with its size in bytes."""
        return {path.name: path.stat().st_size for path in sorted(self.path.iterdir()) if path.is_file()}

    def read_range(self, file: str, start: int, end: int | None) -> bytes:
        """The bytes from `start` to before `end`, or to the last one.

        Raises:
            CheckpointError: they cannot be had.
        """
        try:
            with (self.path / file).open("rb", buffering=0) as stream:
                stream.seek(start)
                return stream.read(-1 if end is None else end - start)
        except OSError as error:
            raise CheckpointError(f"{self.path / file} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class Hub:
    """A model on the Hub, at the commit that its revision names when it is opened."""

    model: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """As fsspec writes it."""
        return f"hf://{self.model}" + (f"@{self.revision}" if self.revision else "")

    @cached_property
    def files(self) -> dict[str, int | None]:
        """What the Hub lists, without folders; of sizes it says nothing."""
        return {file.rfilename: None for file in self._info.siblings or [] if "/" not in file.rfilename}

    def read_range(self, file: str, start: int, end: int | None) -> bytes:
        """As a folder's, by a request for these bytes alone."""
        return self._patiently(lambda: self._fetch(file, start, end), f"{self.name}/{file}")

    @cached_property
    def _info(self) -> Any:
        from huggingface_hub import HfApi

        return self._patiently(
            lambda: HfApi().model_info(self.model, revision=self.revision, timeout=API_SECONDS), self.name
        )

    def _fetch(self, file: str, start: int, end: int | None) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.model, file, revision=self._info.sha)
        # Compressed in transit, a range would be one of the compressed bytes.
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with get_session().stream("GET", url, headers=headers, timeout=READ_SECONDS) as answer:
            hf_raise_for_status(answer)
            if "Range" in headers and answer.status_code != PARTIAL:
                raise self._not_in_parts(file)
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if end is not None and len(content) > end - start:
                    raise self._not_in_parts(file)
            return bytes(content)

    def _not_in_parts(self, file: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name}/{file}: asked for a part of it, the server sends more. Download the model and name its "
            "folder."
        )

    def _patiently(self, attempt: Callable[[], Result], what: str) -> Result:
        try:
            return PATIENCE.call(attempt, what)
        except CheckpointError:
            raise
        except DataError as error:
            raise CheckpointError(str(error)) from error
        except Exception as error:  # the Hub's client has errors of its own
            raise CheckpointError(f"{what} cannot be read: {type(error).__name__}: {error}.") from error


Store = Folder | Hub


def open_store(target: str) -> Store:
    """The folder, or the model on the Hub (`org/name`, `hf://org/name@revision`).

    Raises:
        CheckpointError: it is neither.
    """
    if Path(target).is_dir():
        return Folder(Path(target))
    found = HUB_NAME.fullmatch(target)
    if found is None or looks_local(target):
        raise CheckpointError(
            f"{target}: no such folder. Name a folder of safetensors files, or a model on the Hub as ORG/NAME or "
            "hf://ORG/NAME@REVISION."
        )
    return Hub(found["name"], found["revision"])


def looks_local(target: str) -> bool:
    """Whether a name that could be one of the Hub is a path: it exists, or the folder that it begins with does."""
    return not target.startswith("hf://") and (Path(target).exists() or Path(target).parent.is_dir())
