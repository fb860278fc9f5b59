"""What makes sense together: every problem of a configuration at once, each with what to type instead."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from mhc_train.schema import MIXTURE_KEYS, Config, ConnectionConfig, DataConfig

SOURCES = ("embedded", "hub", "parquet", "json", "text", "mixture")
CHOICES = {
    "connection.order": ("columns_first", "rows_first"),
    "connection.init": ("equivalent", "home", "uniform", "saturated"),
    "connection.expand": ("copy", "scaled"),
    "data.source": SOURCES,
    "data.on_error": ("stop", "skip"),
    "data.prepared": ("auto", "always", "never"),
    "optim.schedule": ("cosine", "constant", "linear", "steps"),
    "train.device": ("auto", "cpu", "cuda", "mps"),
    "train.precision": ("auto", "float32", "bfloat16"),
    "train.stream_precision": ("float32", "bfloat16"),
    "train.parallel": ("auto", "none", "ddp", "fsdp", "hsdp"),
    "train.on_save_error": ("stop", "continue"),
    "train.on_nonfinite": ("stop", "skip"),
    "tracker.kind": ("wandb", "none"),
    "tracker.mode": ("auto", "online", "offline"),
}

POSITIVE = (
    "model.dim", "model.layers", "model.heads", "model.kv_heads", "model.ffn_dim", "model.max_seq_len",
    "model.rope_theta", "model.norm_eps", "connection.streams", "connection.iterations", "data.seq_len",
    "data.shuffle_block", "data.lanes", "data.retries",
    "data.validation_tokens", "optim.lr", "optim.eps", "train.steps", "train.batch_tokens",
    "train.micro_batch", "train.eval_every", "train.save_every", "train.keep_checkpoints", "train.log_every",
    "diagnostics.tokens", "diagnostics.watch_tokens", "connection.write_multiplier", "connection.block",
    "connection.norm_eps", "tracker.timeout",
)  # fmt: skip

NOT_NEGATIVE = (
    "seed", "data.seed", "optim.weight_decay", "optim.warmup_steps", "optim.grad_clip", "train.threads",
    "train.sample_tokens", "train.keep_every", "train.skip_limit", "train.divergence", "train.time_limit",
    "train.time_margin", "train.shard_size", "diagnostics.every", "diagnostics.watch_every", "connection.eps",
    "connection.read_eps", "connection.write_eps", "connection.beta", "connection.first_layer",
)  # fmt: skip


BUILT_FROM = {
    "connection.kind", "connection.mixer", "connection.order", "connection.streams", "connection.iterations",
    "connection.block", "connection.beta", "connection.init", "connection.options", "model.layers",
}  # fmt: skip
"""Keys without which a connection cannot even be tried."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key, its value, what is allowed and what to type."""

    key: str
    value: object
    allowed: str
    mend: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.allowed}. {self.mend}"


def validate(config: Config) -> list[Problem]:
    """Every problem of a typed configuration; an empty list means that it can be run."""
    checks = (_choices, _ranges, _time, _model, _connection, _recompute, _batch, _data)
    problems = [problem for check in checks for problem in check(config)]
    if not {problem.key for problem in problems} & BUILT_FROM:
        problems += _undefined(config)
    return problems


def value_of(config: Config, key: str) -> object:
    """The value of a dotted key."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _choices(config: Config) -> Iterator[Problem]:
    for key, allowed in (CHOICES | _families()).items():
        value = value_of(config, key)
        if value not in allowed:
            yield Problem(key, value, f"must be one of {', '.join(allowed)}", f"Type {_nearest(key, value, allowed)}.")


def _nearest(key: str, value: object, allowed: tuple[str, ...]) -> str:
    """The override that was probably meant: the likest choice, else the default."""
    close = difflib.get_close_matches(str(value), allowed, 1, cutoff=0.4)
    return f"{key}={close[0] if close else value_of(Config(), key)}"


def _families() -> dict[str, tuple[str, ...]]:
    """Choices that are whatever the package has a class for."""
    # Imported here: torch takes seconds, and completion or help need none of it.
    from mhc_train.connections import CONNECTIONS, PLACES, READ_OUTS
    from mhc_train.mixers import MIXERS

    return {
        "connection.kind": tuple(CONNECTIONS),
        "connection.mixer": tuple(MIXERS),
        "connection.read_out": tuple(READ_OUTS),
        "connection.where": tuple(PLACES),
    }


def _ranges(config: Config) -> Iterator[Problem]:
    for key in POSITIVE:
        value = value_of(config, key)
        if not value > 0:  # type: ignore[operator]
            yield Problem(key, value, "must be above 0", f"Type {key}= and a positive number.")
    for key in NOT_NEGATIVE:
        value = value_of(config, key)
        if not value >= 0:  # type: ignore[operator]
            yield Problem(key, value, "must be 0 or more", f"Type {key}=0 or a positive number.")
    for beta in config.optim.betas:
        if not 0 <= beta < 1:
            yield Problem(
                "optim.betas",
                list(config.optim.betas),
                "both must be in [0, 1)",
                "Type optim.betas=[0.9,0.95].",
            )
    if not 0 <= config.optim.final_lr_ratio <= 1:
        yield Problem(
            "optim.final_lr_ratio",
            config.optim.final_lr_ratio,
            "must be in [0, 1]",
            "Type optim.final_lr_ratio=0.1.",
        )


def _time(config: Config) -> Iterator[Problem]:
    limit, margin = config.train.time_limit, config.train.time_margin
    if limit and limit <= margin:
        yield Problem(
            "train.time_limit", limit, f"must be above train.time_margin = {margin:g} (minutes)",
            f"Type train.time_limit={margin + 10:g}, or 0 for none.",
        )  # fmt: skip


def _model(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.heads > 0 and (model.dim % model.heads or (model.dim // model.heads) % 2):
        near = max(2 * model.heads, round(model.dim / (2 * model.heads)) * 2 * model.heads)
        yield Problem(
            "model.dim",
            model.dim,
            f"must be an even multiple of model.heads = {model.heads}",
            f"Type model.dim={near}.",
        )
    if model.kv_heads > 0 and model.heads % model.kv_heads:
        yield Problem(
            "model.kv_heads",
            model.kv_heads,
            f"must divide model.heads = {model.heads}",
            f"Type model.kv_heads={model.heads}.",
        )
    if config.data.seq_len > model.max_seq_len:
        yield Problem(
            "data.seq_len",
            config.data.seq_len,
            f"must be at most model.max_seq_len = {model.max_seq_len}",
            f"Type model.max_seq_len={config.data.seq_len}.",
        )


def _connection(config: Config) -> Iterator[Problem]:
    connection = config.connection
    one, mhc = connection.streams == 1, connection.kind == "mhc"
    rules = (
        ("streams", connection.kind == "residual" and not one, "the plain residual has exactly one stream",
         "connection.streams=1, or connection=mhc"),
        ("mixer", connection.kind == "hc" and connection.mixer != "free", "hc mixes freely",
         "connection.mixer=free, or connection=mhc connection.mixer=" + connection.mixer),
        ("init", connection.init == "home" and not mhc, "is a start of mhc only", "connection.init=equivalent"),
        ("single_pass", connection.single_pass and (one or not mhc), "is a form of mhc with several streams",
         "connection=mhc_single_pass connection.streams=4"),
        ("read_out", connection.read_out == "last_pre" and not connection.single_pass, "needs a single pass",
         "connection.single_pass=true, or connection.read_out=mean"),
        ("single_pass", connection.single_pass and not _everywhere(connection), "takes every sublayer of the model",
         "connection.where=all connection.first_layer=0 connection.last_layer=null"),
        ("expand", connection.expand == "scaled" and one, "needs several streams", "connection.expand=copy"),
        ("options", bool(connection.options) and connection.kind in ("residual", "hc"), "are for mixers of mhc",
         "connection=mhc"),
        ("final_write_multiplier", (connection.final_write_multiplier or 0) < 0, "must be 0 or more",
         "connection.final_write_multiplier=1"),
    )  # fmt: skip
    for key, wrong, allowed, mend in rules:
        if wrong:
            yield Problem(f"connection.{key}", getattr(connection, key), allowed, f"Type {mend}.")
    yield from _layers(config)


def _everywhere(connection: ConnectionConfig) -> bool:
    return (connection.where, connection.first_layer, connection.last_layer) == ("all", 0, None)


def _layers(config: Config) -> Iterator[Problem]:
    first, layers = config.connection.first_layer, config.model.layers
    last = layers - 1 if config.connection.last_layer is None else config.connection.last_layer
    if not first <= last < layers:
        key, value = ("first_layer", first) if config.connection.last_layer is None else ("last_layer", last)
        yield Problem(
            f"connection.{key}", value, f"layers {first} to {last} are not within the model's, 0 to {layers - 1}",
            f"Type connection.first_layer=0 connection.last_layer={layers - 1}.",
        )  # fmt: skip


def _undefined(config: Config) -> Iterator[Problem]:
    """What only the classes know: whether a mixer is defined for that many streams, what an option may be."""
    import torch

    from mhc_train.connections import connection_kind

    try:
        with torch.random.fork_rng(devices=[]):  # a check leaves the caller's random numbers alone
            kind = connection_kind(config.connection)
            kind(config.connection, dim=1, index=0, sublayers=2 * config.model.layers)
    except (ValueError, TypeError) as error:
        yield Problem("connection", config.connection.title, str(error), "Or type another connection=.")


def _recompute(config: Config) -> Iterator[Problem]:
    value = config.train.recompute
    is_number = value.isascii() and value.isdigit() and int(value) > 0
    if value not in ("none", "streams", "auto") and not is_number:
        mend = "Type train.recompute=none." if value == "0" else "Type train.recompute=auto."
        yield Problem("train.recompute", value, "must be none, streams, auto, or a number of sublayers from 1 on", mend)


def _batch(config: Config) -> Iterator[Problem]:
    train, seq_len = config.train, config.data.seq_len
    unit = train.micro_batch * seq_len
    if unit > 0 and train.batch_tokens % unit:
        near = max(unit, round(train.batch_tokens / unit) * unit)
        yield Problem(
            "train.batch_tokens",
            train.batch_tokens,
            f"must be a multiple of train.micro_batch x data.seq_len = {train.micro_batch} x {seq_len} = {unit}",
            f"Type train.batch_tokens={near}.",
        )


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    yield from _mixture(data) if data.source == "mixture" else _embedded("data.path", data.source, data.path)
    if data.source != "mixture" and data.mixture:
        yield Problem("data.mixture", ", ".join(data.mixture), "needs data.source=mixture", "Type data=mixture.")
    if not 0 < data.holdout < 1 and data.validation_split is None:
        yield Problem("data.holdout", data.holdout, "must be between 0 and 1", "Type data.holdout=0.05.")
    if data.tokenizer is None and data.vocab_size < 257:
        yield Problem(
            "data.vocab_size", data.vocab_size, "byte-level BPE needs at least 257: all bytes and end-of-text",
            "Type data.vocab_size=4096.",
        )  # fmt: skip
    if data.validation_tokens < data.seq_len:
        yield Problem(
            "data.validation_tokens", data.validation_tokens, f"must hold a sequence of data.seq_len = {data.seq_len}",
            f"Type data.validation_tokens={data.seq_len}.",
        )  # fmt: skip
    workers = data.workers or 0
    if data.lanes > 0 and (workers < 0 or data.lanes % max(1, workers)):
        fewer = range(1, min(max(1, workers), data.lanes) + 1)
        near = max(number for number in fewer if data.lanes % number == 0)
        yield Problem(
            "data.workers", workers, f"must be 0 or divide data.lanes = {data.lanes}", f"Type data.workers={near}."
        )


def _embedded(key: str, source: object, path: object) -> Iterator[Problem]:
    if source == "embedded" and path not in ("wiki", "python_docs"):
        yield Problem(key, path, "embedded corpora are wiki and python_docs", f"Type {key}=wiki.")


def _mixture(data: DataConfig) -> Iterator[Problem]:
    if not data.mixture:
        yield Problem("data.mixture", "{}", "names no source", "Type data=mixture, and change its sources.")
    for name, own in data.mixture.items():
        key = f"data.mixture.{name}"
        if not isinstance(own, dict):
            yield Problem(key, own, "must say weight, source and path", f"Type {key}.weight=1 and so on.")
            continue
        yield from _mixed(key, own)


def _mixed(key: str, own: dict[str, object]) -> Iterator[Problem]:
    """What is wrong with one source of a mixture."""
    for name, value in sorted(own.items()):
        if name not in ("weight", *MIXTURE_KEYS):
            known = ", ".join(("weight", *MIXTURE_KEYS))
            yield Problem(f"{key}.{name}", value, f"no such key; there is {known}", f"Type ~{key}.{name}.")
        elif name != "weight" and not isinstance(value, str | None):
            yield Problem(f"{key}.{name}", value, "must be text", f"Put it into quotes: {key}.{name}=\"'{value}'\".")
    weight = own.get("weight")
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < float("inf"):
        yield Problem(f"{key}.weight", weight, "must be a number above 0", f"Type {key}.weight=1.")
    kinds = [kind for kind in SOURCES if kind != "mixture"]
    if own.get("source") not in kinds:
        yield Problem(
            f"{key}.source", own.get("source"), f"must be one of {', '.join(kinds)}", f"Type {key}.source=json."
        )
    if not isinstance(own.get("path"), str):
        yield Problem(f"{key}.path", own.get("path"), "must say where the text is", f"Type {key}.path=FILES.")
    yield from _embedded(f"{key}.path", own.get("source"), own.get("path"))
