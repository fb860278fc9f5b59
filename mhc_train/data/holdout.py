"""Which documents are never trained on: decided by their content's hash, wherever and whenever they are read."""

import hashlib
from dataclasses import dataclass


def digest(document: bytes) -> bytes:
    """Eight bytes that stand for a document."""
    return hashlib.blake2b(document, digest_size=8).digest()


def held_out(document: bytes, share: float) -> bool:
    """Whether a document belongs to the held-out share."""
    return int.from_bytes(digest(document), "little") < share * 2**64


@dataclass(frozen=True)
class TrainingSet:
    """The documents that are trained on: all but a share chosen by hash, and all but some given ones."""

    holdout: float
    excluded: frozenset[bytes] = frozenset()
    """Digests of documents that are in the validation split and must not be trained on if they are here too."""

    @property
    def identity(self) -> str:
        """Changes with the documents that are left out."""
        excluded = b"".join(sorted(self.excluded))
        return hashlib.sha256(f"{self.holdout}/{hashlib.sha256(excluded).hexdigest()}".encode()).hexdigest()[:16]

    def __contains__(self, document: bytes) -> bool:
        return not held_out(document, self.holdout) and not (self.excluded and digest(document) in self.excluded)
