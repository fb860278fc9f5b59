"""A foreign model run on real text by its own code (`transformers`): streams, maps, outputs, the loss's gradients."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from mhc_train import kernels
from mhc_train.connections import Maps
from mhc_train.connections.manifold import ManifoldConnection
from mhc_train.diagnostics.observation import Backward, Crossing, Observation
from mhc_train.diagnostics.probe import gradient_at_logits, tokens_of
from mhc_train.errors import CheckpointError, ConfigError, DataError
from mhc_train.foreign.assembly import open_foreign
from mhc_train.foreign.model import ForeignModel

BASIS = "text"
SHOWN = 4
SEQUENCE = 256
AGREED = 1e-3
"""How far our maps, and streams written by them, may be from the model's own before what is declared is wrong."""
MODULES = {"attn_hc": "self_attn", "ffn_hc": "mlp"}
"""What transformers calls hyper-connections in a layer, and the sublayers that they belong to."""


class _Seen(NamedTuple):
    """What passes a sublayer, still part of the graph; the matrix as the model has it."""

    streams: Tensor
    post: Tensor
    matrix: Tensor | None
    x: Tensor
    output: Tensor
    after: Tensor
    """The streams after the sublayer."""


def observe_on_text(
    path: str, tokens: int, text: Path | Int[Tensor, "blocks seq_plus_1"], family: str | None = None
) -> Observation:
    """Run the model in float32 over text, forward and backward, and keep what passes its hyper-connections.

    The whole model is loaded: this is for those that fit into memory.

    Args:
        path: a folder that `transformers` can load.
        tokens: of the text to run on, rounded down to whole sequences of 256, at least one.
        text: a file, which the folder's own tokenizer.json encodes; or token ids, sequences each with the token that
            follows it.
        family: as for `open_foreign`.

    Raises:
        ConfigError: transformers is not installed, or has no code for this model.
        CheckpointError: as `open_foreign`; weights are missing or do not fit; or the model's own maps are not those
            that are declared of its family.
        DataError: the text or the tokenizer is absent, or there is too little text.
    """
    foreign = open_foreign(path, family)
    blocks = text if isinstance(text, Tensor) else _encoded(Path(path), text, tokens)
    model = _load(path)
    with torch.enable_grad():
        seen, loss = _run(model, blocks[: max(1, tokens // (blocks.shape[1] - 1))], len(foreign.names))
    crossings = _crossings(foreign, seen, _gradients(loss, seen))
    return Observation(
        names=foreign.names,
        crossings=crossings,
        basis=BASIS,
        last=tokens_of(seen[-1].after),
        loss=loss.item(),
        guarantees=foreign.guarantees,
    )


def _load(path: str) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "to run somebody else's model on text, its code is needed: pip install transformers. Without it, its "
            "hyper-connections are measured on sampled inputs."
        ) from error
    if not Path(path).is_dir():
        raise ConfigError(f"{path} is no folder: download the model before it is run on text.")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would draw is refused here, in one line
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise ConfigError(f"{path}: {_cannot_load(transformers.__version__, error)}") from error
    except Exception as error:  # its readers have errors of their own, of damaged files and of tensors that do not fit
        raise CheckpointError(f"{path}: {_cannot_load(transformers.__version__, error)}") from error
    model: nn.Module = loaded[0]
    _refuse_drawn(path, loaded[1])
    return model.eval()


def _cannot_load(version: str, error: Exception) -> str:
    return f"transformers {version} cannot load it: {' '.join(str(error).split()) or type(error).__name__}"


def _refuse_drawn(path: str, info: Mapping[str, Any]) -> None:
    """Weights that the files do not have, or have of another shape, would be random ones."""
    missing, other = sorted(info["missing_keys"]), sorted(name for name, *_ in info["mismatched_keys"])
    for names, what in ((missing, "are missing"), (other, "have another shape than its config.json says")):
        if names:
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            raise CheckpointError(f"{path}: weights of the model {what}, so that it cannot be run on text: {shown}.")


def _encoded(folder: Path, text: Path, tokens: int) -> Tensor:
    """The beginning of a text as sequences, each with the token that follows it."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{folder}: it has no tokenizer.json, so that text cannot be made its tokens.")
    try:
        with text.open(encoding="utf-8") as stream:
            # More characters a token than any text has.
            content = stream.read(16 * (tokens + SEQUENCE + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text} cannot be read as text: {error}.") from error
    ids = torch.tensor(Tokenizer.from_file(str(file)).encode(content).ids)
    if len(ids) < 2:
        raise DataError(f"{text}: {len(ids)} tokens are too few to run a model on.")
    length = min(SEQUENCE, len(ids) - 1)
    count = min(max(1, tokens // length), (len(ids) - 1) // length)
    return torch.stack([ids[first : first + length + 1] for first in range(0, count * length, length)])


def _run(model: nn.Module, blocks: Tensor, sublayers: int) -> tuple[list[_Seen], Tensor]:
    """One forward pass: every sublayer in order, and the loss in nats a token."""
    inputs: list[tuple[Tensor, ...]] = []
    outputs: list[Tensor] = []
    ends: list[Tensor] = []
    hooks = []
    for name, module in model.named_modules():
        kind = re.fullmatch(r"(?:.*\.)?layers\.\d+\.(\w+)", name)
        if kind and kind[1] in MODULES:
            hooks.append(module.register_forward_hook(lambda _, given, made: inputs.append((given[0], *made))))
        elif kind and kind[1] in MODULES.values():
            hooks.append(module.register_forward_hook(lambda _, __, made: outputs.append(_first(made))))
        elif name.endswith("hc_head"):
            hooks.append(module.register_forward_pre_hook(lambda _, given: ends.append(given[0])))
    try:
        logits = model(input_ids=blocks[:, :-1], use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(inputs) != sublayers or len(outputs) != sublayers or len(ends) != 1:
        raise ConfigError(
            f"transformers' code of this model has {len(inputs)} hyper-connections where its checkpoint has "
            f"{sublayers}: it cannot be observed on text. Leave the text out to measure it on sampled inputs."
        )
    loss = F.cross_entropy(logits.float().flatten(0, 1), blocks[:, 1:].flatten())
    after = [*(streams for streams, *_ in inputs[1:]), *ends]
    seen = [
        _Seen(streams, made[0], made[1] if len(made) == 3 else None, made[-1], *rest)
        for (streams, *made), *rest in zip(inputs, outputs, after, strict=True)
    ]
    return seen, loss


def _first(made: Any) -> Tensor:
    """A sublayer's output, without what it hands out besides."""
    output: Tensor = made[0] if isinstance(made, tuple) else made
    return output


class _Gradients(NamedTuple):
    """The loss's, at everything of one sublayer."""

    streams: Tensor
    post: Tensor
    matrix: Tensor | None
    x: Tensor
    after: Tensor


def _gradients(loss: Tensor, seen: list[_Seen]) -> list[_Gradients]:
    streams = [*(what.streams for what in seen), seen[-1].after]
    others = [[what.post, what.x, *([] if what.matrix is None else [what.matrix])] for what in seen]
    found = iter(torch.autograd.grad(loss, [*streams, *(part for parts in others for part in parts)]))
    at_streams = [next(found) for _ in streams]
    at_others = [[next(found) for _ in parts] for parts in others]
    return [
        _Gradients(at_streams[index], post, matrix[0] if matrix else None, x, at_streams[index + 1])
        for index, (post, x, *matrix) in enumerate(at_others)
    ]


def _crossings(foreign: ForeignModel, seen: list[_Seen], gradients: list[_Gradients]) -> list[Crossing]:
    rows = zip(foreign.names, foreign.connections, seen, gradients, strict=True)
    return [_crossing(foreign, *row) for row in rows]


def _crossing(
    foreign: ForeignModel, name: str, connection: ManifoldConnection, what: _Seen, gradients: _Gradients
) -> Crossing:
    """Theirs where the model hands it out, ours (`pre`, logits, the way through the coefficients) where it does not."""
    leaf = what.streams.detach().requires_grad_()
    with torch.enable_grad():
        maps = connection.maps(leaf)
    their_maps = Maps(maps.pre.detach(), what.post.detach(), _ours(foreign, what.matrix, maps.res.detach()))
    _agree(foreign, name, maps, their_maps, what)
    at_res = _ours(foreign, gradients.matrix, torch.zeros_like(maps.res))
    made = Maps((gradients.x.unsqueeze(-2) * leaf.detach()).sum(-1), gradients.post, at_res)
    mixing = connection.mixing(leaf.detach())
    pairs = [(part, along) for part, along in zip(maps, made, strict=True) if part.requires_grad]
    outputs, weights = zip(*pairs, strict=True)
    (coefficients,) = torch.autograd.grad(outputs, leaf, weights)
    return Crossing(
        pre=tokens_of(their_maps.pre),
        post=tokens_of(their_maps.post),
        res=tokens_of(their_maps.res),
        logits=None if mixing is None else tokens_of(mixing[1]),
        streams=tokens_of(leaf),
        output=tokens_of(what.output),
        backward=Backward(
            after=tokens_of(gradients.after),
            read=tokens_of(gradients.x),
            coefficients=tokens_of(coefficients),
            total=tokens_of(gradients.streams),
            logits=None if mixing is None else tokens_of(gradient_at_logits(*mixing, at_res)),
        ),
    )


def _ours(foreign: ForeignModel, matrix: Tensor | None, instead: Tensor) -> Tensor:
    """The model's matrix, or a gradient at it, as H_res: rows receive."""
    if matrix is None:
        return instead
    return matrix.detach().mT if foreign.family.transposed else matrix.detach()


def _agree(foreign: ForeignModel, name: str, ours: Maps, theirs: Maps, what: _Seen) -> None:
    """Refuse a declaration that the model's own maps, or what it reads and writes, contradict."""
    with torch.no_grad():
        read = kernels.read(what.streams, theirs.pre)
        written = kernels.write(what.streams, what.output, theirs.post, theirs.res)
        maps = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
        streams = max(_apart(read, what.x), _apart(written, what.after))
    if not max(maps, streams) <= AGREED:
        raise CheckpointError(
            f"{foreign.source}: at {name} the model's own maps are up to {maps:.2g}, and what it reads and writes up "
            f"to {streams:.2g}, away from what is declared of {foreign.family.title} ({foreign.convention}). It is "
            "another family, or another version of it."
        )


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
