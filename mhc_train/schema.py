"""Every key that can be configured, with its type, its default and its meaning."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    dim: int = 128
    """Width C of the model and of every residual stream."""
    layers: int = 4
    """Transformer layers; each has two sublayers, attention and feed-forward."""
    heads: int = 4
    """Query heads; `dim` must be a multiple, with an even head width."""
    kv_heads: int = 2
    """Key and value heads; a divisor of `heads` (equal: multi-head, 1: multi-query)."""
    ffn_dim: int = 344
    """Hidden width of the SwiGLU feed-forward."""
    max_seq_len: int = 2048
    """Longest sequence that the rotary positions are made for."""
    tie_embeddings: bool = True
    """Use the token embedding as the output projection too."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm of the backbone."""
    document_mask: bool = False
    """Let a token attend to its own document alone, not to the ones that are packed before it in its sequence."""


@dataclass(frozen=True)
class ConnectionConfig:
    """How every sublayer is tied to the residual streams."""

    kind: str = "mhc"
    """residual | hc (arXiv 2409.19606) | mhc (arXiv 2512.24880), or one of your own."""
    label: str = ""
    """What runs and reports call it, as conf/connection does; without one, its kind."""
    streams: int = 4
    """Number n of residual streams (the expansion rate); 1 for `residual`."""
    dynamic: bool = True
    """Maps depend on the token; false: on the biases alone, the same for every token (static HC)."""
    mixer: str = "sinkhorn"
    """How mHC's logits become H_res: a name of docs/mixers.md. HC is always free, residual has none."""
    iterations: int = 20
    """Sinkhorn: rounds of normalisation."""
    order: str = "columns_first"
    """Sinkhorn: columns_first: each round ends on the rows, which are then exact (mHC, Eq. 9) | rows_first."""
    eps: float = 0.0
    """Sinkhorn: added to the first softmax and every denominator; 1e-6 in DeepSeek-V4, 0 in the paper."""
    beta: float = 1.0
    """Circulant: how much the whole depth may leak, whatever its number of sublayers."""
    block: int = 2
    """Orthostochastic: rows s of the orthogonal matrix's blocks; larger reaches more of the Birkhoff polytope."""
    options: dict[str, Any] = field(default_factory=dict)
    """Whatever else a mixer of your own takes, by the names of its constructor."""
    gate_init: float = 0.01
    """Start value of the gates a_pre, a_post, a_res of the input-dependent part."""
    init: str = "equivalent"
    """mHC's bias at the start: equivalent (the baseline's function) | home | uniform | saturated."""
    norm_eps: float = 1e-6
    """Added to the mean square of the streams whose projection gives mHC's maps; 1e-5 in Hy4."""
    read_eps: float = 0.0
    """Added to every entry of mHC's H_pre; 1e-6 in DeepSeek-V4 and Hy4."""
    write_eps: float = 0.0
    """Added to every entry of mHC's H_post; 1e-6 in Hy4."""
    write_multiplier: float = 2.0
    """mHC's H_post is this times a sigmoid, so that 2 starts by writing 1."""
    final_write_multiplier: float | None = None
    """Where the write multiplier ends, changing linearly over the training; null keeps it."""
    single_pass: bool = False
    """mHC reads with the weights that the sublayer before projected (DeepSeek-V4.1), the first with stream 0 alone."""
    expand: str = "copy"
    """What the streams start from: copy (the embedding) | scaled (a learned scale of each stream and channel)."""
    read_out: str = "mean"
    """How the streams become one after the last sublayer: mean | sum | gated | last_pre (single-pass only)."""
    first_layer: int = 0
    """First transformer layer with this connection; others read the mean of the streams and write to all alike."""
    last_layer: int | None = None
    """Last transformer layer with this connection; null: the model's last."""
    where: str = "all"
    """Which sublayers of those layers have it: all | attention | feedforward."""

    @property
    def title(self) -> str:
        """Its label, or its kind."""
        return self.label or self.kind


MIXTURE_KEYS = ("source", "path", "name", "revision", "split", "validation_split", "column")
"""What each source of a mixture says for itself, beside its weight; everything else holds for all."""


@dataclass(frozen=True)
class DataConfig:
    """Which text is read, in which order, and how it becomes tokens."""

    source: str = "embedded"
    """embedded (a corpus that Python packages carry) | hub | parquet | json | text | mixture."""
    path: str = "wiki"
    """embedded: wiki or python_docs; hub: the data set's name, or a directory laid out like one; files: a path, a
    glob, or an address that fsspec knows, such as s3://bucket/*.parquet."""
    mixture: dict[str, Any] = field(default_factory=dict)
    """Mixture only: sources by any name, each with a weight (its share of the tokens), a source and a path, and where
    needed its own name, revision, split, validation_split and column."""
    name: str | None = None
    """Hub only: the data set's configuration, for example sample-10BT."""
    revision: str | None = None
    """Hub only: a commit or tag, to read the same bytes for ever."""
    split: str = "train"
    """Hub only: the split that training reads."""
    validation_split: str | None = None
    """Hub only: a split for validation; without one, documents are held out by their hash."""
    column: str = "text"
    """The column that holds the document's text."""
    seq_len: int = 256
    """Tokens a sequence, S."""
    seed: int = 0
    """Seed of the document order; the same for all arms of a comparison."""
    shuffle_block: int = 1024
    """Documents are shuffled inside consecutive blocks of this many; 1 keeps a lane's stored order."""
    lanes: int = 16
    """Streams that share the documents and fill each batch in turn, whatever the number of processes and workers;
    a multiple of the processes. Part of the order: another number is another order."""
    workers: int | None = None
    """Processes that read and tokenise for each training process, a divisor of its lanes; 0: it does so itself; null:
    0 on a CPU, up to eight on a GPU."""
    on_error: str = "stop"
    """What an unreadable document or file does: stop | skip (pass it over, count it, say so)."""
    retries: int = 8
    """Attempts at a read that a network lets fail, with growing pauses, before the run stops."""
    prepared: str = "auto"
    """Tokens written by `data prepare --tokens`: auto (use them if there are any) | always | never."""
    holdout: float = 0.05
    """Share of the documents, chosen by hash, that are kept for validation and never trained on."""
    validation_tokens: int = 65536
    """Most tokens of the fixed validation set; rounded down to whole sequences."""
    vocab_size: int = 4096
    """Size of the byte-level BPE vocabulary that is trained when `tokenizer` is not given."""
    tokenizer: str | None = None
    """A tokenizer.json to use instead of training one."""
    tokenizer_sha256: str | None = None
    """Filled in by the run: hash of the tokenizer.json used. Given by hand, it must match."""
    cache_dir: str = "data"
    """Where prepared corpora and trained tokenizers are kept."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warm-up; norms, gates, biases and mixers take no weight decay."""

    lr: float = 3e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    eps: float = 1e-8
    """AdamW's denominator epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the backbone's matrices."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from zero."""
    schedule: str = "cosine"
    """cosine | constant | linear | steps (x0.316 at 80 %, x0.1 at 90 % of the run: the mHC paper's)."""
    final_lr_ratio: float = 0.1
    """Learning rate at the end over the peak, for cosine and linear."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off. The unclipped norm is what is logged."""

    def __post_init__(self) -> None:
        # YAML and JSON know only lists; a frozen configuration holds a tuple, whichever way it came.
        object.__setattr__(self, "betas", tuple(self.betas))


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large a batch, on what, and how often to look."""

    steps: int = 1000
    """Optimizer steps."""
    batch_tokens: int = 4096
    """Tokens an optimizer step, over all micro-batches."""
    micro_batch: int = 16
    """Sequences that pass through the model at once; gradients of several are accumulated."""
    device: str = "auto"
    """auto | cpu | cuda | mps."""
    precision: str = "auto"
    """auto | float32 | bfloat16 (autocast; weights and coefficients stay float32)."""
    stream_precision: str = "float32"
    """float32 | bfloat16: how the residual streams are kept, of the residual connection too; bfloat16 halves their
    memory and traffic. Every map and every sum of streams is still computed in float32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    recompute: str = "none"
    """What the backward pass computes again instead of keeping it: none | streams (all but every k-th state of the
    streams, k = sqrt(n L / (n + 2)) of L sublayers as the mHC paper has it) | auto (whole segments of k sublayers:
    saves more, takes more time) | a number of sublayers a segment. Same gradients."""
    threads: int = 0
    """Threads of the CPU backend; 0 leaves torch's own choice."""
    eval_every: int = 200
    """Steps between validations; the last step is always validated."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 for none."""
    async_save: bool = True
    """Write checkpoints while the training goes on, from a copy in memory; false: wait for each."""
    on_save_error: str = "stop"
    """stop (exit code 7) | continue: what follows when a checkpoint cannot be written; the last one must be."""
    on_nonfinite: str = "stop"
    """stop (exit code 5) | skip: what follows a loss or gradient that is not finite; its update is never made."""
    skip_limit: int = 10
    """With on_nonfinite=skip: this many updates are skipped in a row, at most."""
    divergence: float = 2.0
    """Stop (exit code 5) where the mean loss of 100 steps is this many nats above the lowest such mean; 0: never."""
    time_limit: float = 0.0
    """Minutes after which to save and stop (exit code 75, resume with --resume); 0 for none."""
    time_margin: float = 1.0
    """Minutes before the time limit at which to begin that; more where saving is seen to need more."""
    parallel: str = "auto"
    """auto (ddp under torchrun) | none | ddp (a whole model on every process) | fsdp (a shard on each) | hsdp."""
    shard_size: int = 0
    """With hsdp: processes that share one model's shards; 0: those of one machine."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    sample_tokens: int = 48
    """Tokens of each sampled continuation after training; 0 for none."""


@dataclass(frozen=True)
class DiagnosticsConfig:
    """When and on how many tokens the residual path is measured during training."""

    every: int = 200
    """Steps between measurements; the start and the end are always measured. 0 switches all off."""
    tokens: int = 1024
    """Validation tokens that a measurement looks at; rounded down to whole sequences, at least one."""
    watch_every: int = 100
    """Training steps between looks at the path through their own forward pass, without gradients; 0 for none."""
    watch_tokens: int = 256
    """Training tokens that a look takes in: the first whole sequences, or as many at even distances in the first."""


@dataclass(frozen=True)
class TrackerConfig:
    """Where metrics are sent besides metrics.jsonl, which always has them all."""

    kind: str = "wandb"
    """wandb | none."""
    mode: str = "auto"
    """auto (offline where W&B cannot be reached at the start) | online (tried until it can) | offline."""
    project: str = "mhc-train"
    """W&B project."""
    timeout: float = 60.0
    """Seconds after which a call of the service counts as hanging, and that the end of a training waits at most for
    what is not sent yet."""


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    name: str = "run"
    """Part of the run directory's name."""
    seed: int = 0
    """Seed of the weights. The backbone's depend on nothing else, so that arms start alike."""
    runs_dir: str = "runs"
    """Where run directories are made."""
    model: ModelConfig = field(default_factory=ModelConfig)
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


def key_names(schema: Any = Config, prefix: str = "") -> list[str]:
    """All keys of a schema in dotted form, leaves only: `name`, `model.dim`, ..."""
    names: list[str] = []
    for entry in schema.__dataclass_fields__.values():
        dotted = prefix + entry.name
        names += key_names(entry.type, dotted + ".") if hasattr(entry.type, "__dataclass_fields__") else [dotted]
    return names
