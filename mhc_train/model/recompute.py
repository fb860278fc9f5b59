"""What the backward pass computes again instead of keeping it: whole segments of sublayers, or the streams alone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy

from mhc_train.connections import Maps, Path, State

NONE, STREAMS, AUTO = "none", "streams", "auto"


class Segments(NamedTuple):
    """How a model is cut for the backward pass."""

    length: int = 0
    """Sublayers a segment, of whose streams only the first are kept; 0 keeps everything."""
    streams_only: bool = False
    """Whether the streams alone are made again, of what the sublayers have put out; else the sublayers run again."""

    def described(self, compiled: bool) -> str:
        """What the backward pass does, in a sentence; nothing to say where all is kept."""
        if not self.length:
            return ""
        if not self.streams_only:
            return f"The backward pass runs segments of {self.length} sublayers again."
        if not compiled:
            return f"The streams are kept of one state in {self.length}; the backward pass rebuilds the others."
        return (
            f"The backward pass runs segments of {self.length} sublayers again, but for matrix products, attention and "
            "Sinkhorn's or Newton's rounds: a compiled model rebuilds its streams so."
        )


KEEP_ALL = Segments()


def segments(recompute: str, streams: int, sublayers: int) -> Segments:
    """The segments that a configuration asks for.

    Args:
        recompute: `train.recompute`: none, streams, auto, or a number.
        streams: n.
        sublayers: L, of the whole model.

    Returns:
        of sqrt(n L / (n + 2)) sublayers for `streams` and `auto`, where the n C numbers kept a border balance the
        (n + 2) C that each sublayer of one segment at work needs for its connection (arXiv 2512.24880). A single stream
        is what every sublayer keeps as its input: it is never rebuilt.
    """
    if recompute == NONE or (recompute == STREAMS and streams == 1):
        return KEEP_ALL
    if recompute in (STREAMS, AUTO):
        return Segments(max(1, round(math.sqrt(streams * sublayers / (streams + 2)))), recompute == STREAMS)
    return Segments(min(int(recompute), sublayers))


class RebuiltStreams:
    """A path, for one forward pass, after which the streams are kept of every `length`-th state only.

    In the backward pass, the first use of another state's streams writes again from the kept ones before it, with the
    sublayers' outputs (kept in the precision in which they came) and maps: X' = H_res X + H_post y. Nothing else is
    computed again. Each state that was rebuilt goes as soon as the backward pass has passed it; a graph that is
    retained retains it. What sublayers and observers keep is not touched.

    Args:
        path: the model's; its `write` gives the streams that its `cross` gives.
        length: at least 1.
    """

    def __init__(self, path: Path, length: int) -> None:
        self._path, self._length = path, length
        self._here: _Source

    def read(self, index: int, state: State) -> tuple[State, Float[Tensor, "batch seq C"]]:
        """As the path; the streams are a segment's first."""
        self._here = _Kept(state.streams)
        with _saving() as saved:
            after, x = self._path.read(index, state)
        _refer(saved, (state.streams, self._here))
        return after, x

    def cross(
        self, index: int, state: State, output: Float[Tensor, "batch seq C"]
    ) -> tuple[State, Float[Tensor, "batch seq C"]]:
        """As the path."""
        output, kept = _as_written(output, state)
        with _saving() as saved:
            after, x = self._path.cross(index, state, output)
        before, at_border = self._here, (index + 1) % self._length == 0
        self._here = _Kept(after.streams) if at_border else _Rebuilt(before, self._path, index, state, kept)
        _refer(saved, (state.streams, before), (after.streams, self._here), (output, kept))
        return after, x

    def write(self, index: int, state: State, output: Float[Tensor, "batch seq C"]) -> State:
        """As the path; what follows is on its own."""
        output, kept = _as_written(output, state)
        with _saving() as saved:
            after = self._path.write(index, state, output)
        _refer(saved, (state.streams, self._here), (output, kept))
        return after


class _Source(ABC):
    """What gives a tensor when it is asked for."""

    @abstractmethod
    def value(self) -> Tensor: ...


class _Kept(_Source):
    """A tensor that must not change until it is used."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor.detach(), tensor._version

    def value(self) -> Tensor:
        # Autograd checks this itself only where no hooks are.
        if self._tensor._version != self._version:
            raise RuntimeError(
                f"A tensor of shape {tuple(self._tensor.shape)} that the backward pass of a connection needs has been "
                "changed in place since the forward pass. Work on a copy of it."
            )
        return self._tensor


class _Converted(_Source):
    """A tensor in another precision than the one in which it is kept."""

    def __init__(self, kept: _Kept, dtype: torch.dtype) -> None:
        self._kept, self._dtype = kept, dtype

    def value(self) -> Tensor:
        return self._kept.value().to(self._dtype)


class _Rebuilt(_Source):
    """The streams after a sublayer: written when they are first asked for, and there for as long as anybody may ask."""

    def __init__(self, before: _Source, path: Path, index: int, state: State, output: _Source) -> None:
        assert state.maps is not None
        self._before, self._path, self._index = before, path, index
        self._maps, self._output = [_Kept(part) for part in state.maps], output
        self._streams: Tensor | None = None

    @torch.no_grad()
    def value(self) -> Tensor:
        if self._streams is None:
            state = State(self._before.value(), Maps(*(part.value() for part in self._maps)))
            self._streams = self._path.write(self._index, state, self._output.value()).streams
        return self._streams


class _Saved:
    """What autograd keeps in a tensor's place: the tensor, or where it lies in one that has another source."""

    def __init__(self, tensor: Tensor) -> None:
        self._source: _Source = _Kept(tensor)
        self._view: tuple[Any, ...] | None = None

    def refer(self, whole: Tensor, source: _Source) -> None:
        """Let go of the tensor if it lies in `whole`, which `source` gives."""
        if self._view is None:
            tensor = self._source.value()
            if tensor.dtype == whole.dtype and _storage(tensor) == _storage(whole):
                self._source, self._view = source, (tensor.size(), tensor.stride(), tensor.storage_offset())

    def tensor(self) -> Tensor:
        whole = self._source.value()
        return whole if self._view is None else whole.as_strided(*self._view)


@contextmanager
def _saving() -> Iterator[list[_Saved]]:
    """Collects what autograd saves inside."""
    saved: list[_Saved] = []

    def pack(tensor: Tensor) -> _Saved:
        saved.append(_Saved(tensor))
        return saved[-1]

    with saved_tensors_hooks(pack, _Saved.tensor):
        yield saved


def _as_written(output: Tensor, state: State) -> tuple[Tensor, _Source]:
    """A sublayer's output in the streams' precision, and what gives it again from the one that it came in."""
    kept, dtype = _Kept(output), state.streams.dtype
    return output.to(dtype), kept if output.dtype == dtype else _Converted(kept, dtype)


def _refer(saved: list[_Saved], *known: tuple[Tensor, _Source]) -> None:
    for each in saved:
        for whole, source in known:
            each.refer(whole, source)
    saved.clear()  # autograd holds on to the hook, and would to all that one crossing has saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


KEPT_COMPILED = frozenset(
    {f"aten::{name}" for name in ("mm", "addmm")}
    | {f"aten::_scaled_dot_product_{name}_attention" for name in ("flash", "efficient", "cudnn")}
    | {f"mhc_train::{name}" for name in ("sinkhorn", "newton")}
)
"""What a compiled segment keeps the results of: products (the sublayers' outputs are some), attention, and the mixers
that take many rounds."""


def keep_costly(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """A policy for `torch.utils.checkpoint` in a compiled model, whose graphs have no hooks on what they save.

    The streams of a segment are computed again, as is all else that is not expensive.
    """
    name = operator.name().partition(".")[0].removesuffix("_for_cpu")
    return CheckpointPolicy.MUST_SAVE if name in KEPT_COMPILED else CheckpointPolicy.PREFER_RECOMPUTE
