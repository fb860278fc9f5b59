"""How fast text becomes batches of tokens, beside the tokenizer alone and the obvious way, and how soon one resumes."""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from connection_cost import cpu_model
from obvious_pipeline import ObviousPipeline
from record import significant, write_json, write_table
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mhc_train.data import Corpus, open_corpus
from mhc_train.data.prepare import prepare
from mhc_train.schema import DataConfig

COPIES = 6
"""How often the embedded summaries are repeated in a large corpus."""
LONG = 20
"""Summaries a long document."""
AT_ONCE = 1000
"""Summaries a row group of parquet, and summaries that `datasets` passes on at once: its defaults."""
SEQ_LEN, SEQUENCES = 256, 16
BATCH_TOKENS = SEQ_LEN * SEQUENCES
TEXT_TURN, STORED_TURN = 200_000, 1024 * BATCH_TOKENS
"""Tokens a turn, of text and of prepared tokens."""
RESUMES = 5
"""Turns of every resume."""

CEILING, TEXT = "tokenizers alone", "mhc-train, text"
OBVIOUS, SHUFFLED, TUNED = "datasets", "datasets, shuffled", "datasets, one function"
STORED, WORKER, MEMORY = "mhc-train, prepared", "mhc-train, prepared, one worker (wall time)", "memory map"
RIVALS = (CEILING, TEXT, OBVIOUS, SHUFFLED)
"""Whom everyone is compared to; in tables, the first two alone."""
OURS, THEIRS = "mhc-train", "datasets"
TARGETS = ((TEXT, CEILING, 0.9), (TEXT, OBVIOUS, 1.0), (TEXT, SHUFFLED, 1.0), (STORED, TEXT, 100.0))
"""The least share of the second's speed that the first should have."""

Speeds = dict[str, dict[str, Any]]
"""By contestant, tokens a second, best and median, and ratios to rivals."""
Seconds = dict[str, dict[str, dict[str, float]]]
"""Best and median, by case and owner."""


class Turn(NamedTuple):
    tokens: int
    seconds: float

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


Contestants = dict[str, Callable[[], Turn]]


class Recorder:
    """A tokenizer that keeps what it is given, and counts the tokens that it makes, with one that ends each document.

    It stands in for the tokenizer in all pipelines alike.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, documents: list[str], add_special_tokens: bool) -> list[Any]:
        encodings = self.tokenizer.encode_batch_fast(documents, add_special_tokens=add_special_tokens)
        self.groups.append(documents)
        self.tokens += sum(map(len, encodings)) + len(encodings)
        return encodings

    def clear(self) -> None:
        self.groups: list[list[str]] = []
        self.tokens = 0


# Corpora


class Case(NamedTuple):
    """A corpus of one file."""

    name: str
    config: DataConfig
    size: int
    """UTF-8 bytes of its text."""
    at_once: int
    """Documents that belong together in the file and on the way of `datasets`."""

    def half(self) -> int:
        """How many batches lead to about the middle of its epoch."""
        return int(self.size / open_corpus(self.config).validation.bytes_per_token / 2 / BATCH_TOKENS)


def cases(directory: Path) -> list[Case]:
    """Two formats in two sizes, and long documents; all with one tokenizer."""
    corpus = open_corpus(DataConfig(cache_dir=str(directory / "embedded"), workers=0))
    tokenizer = directory / "tokenizer.json"
    tokenizer.write_text(corpus.tokenizer.json, encoding="utf-8")
    documents = [text for text, _ in corpus.texts[0].reader.texts()]
    short = [case(format, copied(documents, copies), 1, tokenizer) for copies in (1, COPIES) for format in WRITERS]
    return [*short, case("parquet", lengthened(copied(documents, COPIES)), LONG, tokenizer)]


def copied(documents: list[str], copies: int) -> list[str]:
    """More documents, no two of which are the same."""
    return [f"Copy {number}. {document}" for number in range(copies) for document in documents]


def lengthened(documents: list[str]) -> list[str]:
    return ["\n".join(documents[start : start + LONG]) for start in range(0, len(documents), LONG)]


def case(format: str, texts: list[str], summaries: int, tokenizer: Path) -> Case:
    """Write a corpus whose documents have so many summaries each."""
    size, at_once = sum(len(text.encode()) for text in texts), AT_ONCE // summaries
    name = f"{format}, {'short' if summaries == 1 else 'long'} documents, {size / 1e6:.0f} MB"
    path = tokenizer.parent / f"{name}.{format}"
    WRITERS[format](texts, path, at_once)
    cache_dir = str(tokenizer.parent / "cache")
    config = DataConfig(format, str(path), seq_len=SEQ_LEN, prepared="never", workers=0, cache_dir=cache_dir)
    return Case(name, dataclasses.replace(config, tokenizer=str(tokenizer)), size, at_once)


def write_parquet(texts: list[str], path: Path, group: int) -> None:
    pq.write_table(pa.table({"text": texts}), path, row_group_size=group)


def write_lines(texts: list[str], path: Path, group: int) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


WRITERS: dict[str, Callable[[list[str], Path, int], None]] = {"parquet": write_parquet, "json": write_lines}


def obvious(case: Case, corpus: Corpus, tokenizer: Any, **style: bool) -> ObviousPipeline:
    format, path, end = case.config.source, case.config.path, corpus.tokenizer.end_of_text
    return ObviousPipeline(format, path, tokenizer, end, SEQ_LEN + 1, SEQUENCES, case.at_once, **style)


# Contestants: each goes on where its last turn ended.


def text_contestants(case: Case) -> Contestants:
    """Those that tokenise."""
    corpus = open_corpus(case.config)
    tokenizer = corpus.tokenizer.tokenizer
    ours, rivals = Recorder(tokenizer), Recorder(tokenizer)
    styles: dict[str, dict[str, bool]] = {OBVIOUS: {}, SHUFFLED: {"shuffled": True}, TUNED: {"one_function": True}}
    entered = {
        TEXT: partial(until_tokenised, recorded(corpus, ours).batches(SEQUENCES), ours),
        CEILING: partial(encoded_again, ours),
    }
    for name, style in styles.items():
        pipeline = obvious(case, corpus, rivals, **style)
        entered[name] = partial(until_tokenised, endless(pipeline), rivals)
    return entered


def recorded(corpus: Corpus, recorder: Recorder) -> Corpus:
    """The same corpus, tokenised by a recorder."""
    tokenizer = dataclasses.replace(corpus.tokenizer, tokenizer=recorder)
    reader = dataclasses.replace(corpus.texts[0], tokenizer=tokenizer)
    return dataclasses.replace(corpus, plan=dataclasses.replace(corpus.plan, readers=(reader,)))


def endless(pipeline: ObviousPipeline) -> Iterator[Tensor]:
    for epoch in repeat(pipeline.batches):
        yield from epoch()


def until_tokenised(batches: Iterator[Tensor], recorder: Recorder) -> Turn:
    """Batches until enough is tokenised.

    A turn ends, and the next begins, right after a group of documents was tokenised. It thus delivers about as many
    tokens as it makes, and is credited with those that it makes.
    """
    recorder.clear()
    start = time.process_time()
    while recorder.tokens < TEXT_TURN:
        next(batches)
    return Turn(recorder.tokens, time.process_time() - start)


def encoded_again(recorder: Recorder) -> Turn:
    """What a pipeline tokenised in its last turn, the same documents in the same groups, once more."""
    start = time.process_time()
    for group in recorder.groups:
        recorder.tokenizer.encode_batch_fast(group, add_special_tokens=False)
    return Turn(recorder.tokens, time.process_time() - start)


def stored_contestants(config: DataConfig, leaving: ExitStack) -> Contestants:
    """Those that read prepared tokens; the one with a worker in wall time, since the worker's CPU time is not ours."""
    directory = Path(prepare(config, tokens=True)["prepared"][0]["directory"])
    always = dataclasses.replace(config, prepared="always")
    stored = open_corpus(always).batches(SEQUENCES)
    worker = open_corpus(dataclasses.replace(always, workers=1)).batches(SEQUENCES)
    leaving.callback(worker.close)
    files = [np.memmap(path, "<u2", "r").view(np.ndarray) for path in sorted(directory.glob("*.tokens"))]
    return {
        STORED: partial(delivered, stored, time.process_time),
        WORKER: partial(delivered, worker, time.perf_counter),
        MEMORY: partial(delivered, mapped(files), time.process_time),
    }


def mapped(files: list[np.ndarray]) -> Iterator[Tensor]:
    """Batches as they lie in the files, without end."""
    size = SEQUENCES * (SEQ_LEN + 1)
    while True:
        for tokens in files:
            for start in range(0, len(tokens) - size, size):
                yield torch.from_numpy(tokens[start : start + size].astype(np.int64)).view(SEQUENCES, -1)


def delivered(batches: Iterator[Tensor], clock: Callable[[], float]) -> Turn:
    start, tokens = clock(), 0
    while tokens < STORED_TURN:
        tokens += next(batches)[:, 1:].numel()
    return Turn(tokens, clock() - start)


def compete(fields: dict[str, Contestants], rounds: int) -> dict[str, dict[str, list[Turn]]]:
    """All take turns, on every corpus, so that whatever else the machine does befalls them alike."""
    turns: dict[str, dict[str, list[Turn]]] = {
        corpus: {name: [] for name in entered} for corpus, entered in fields.items()
    }
    for number in range(rounds + 1):
        for corpus, entered in fields.items():
            for name, turn in entered.items():
                taken = turn()
                if number:  # the first warms up, and has the first batches in it
                    turns[corpus][name].append(taken)
    return turns


def speeds(turns: dict[str, list[Turn]]) -> Speeds:
    """Tokens a second; with ratios of the best, and the median of every round's ratio."""
    rates = {name: [turn.speed for turn in taken] for name, taken in turns.items()}
    return {
        name: {**summary(max(own), own), "ratio_to": {rival: ratio(own, rates[rival]) for rival in RIVALS}}
        for name, own in rates.items()
    }


def ratio(own: list[float], others: list[float]) -> dict[str, float]:
    return summary(max(own) / max(others), [one / other for one, other in zip(own, others, strict=True)])


def summary(best: float, values: list[float]) -> dict[str, float]:
    return {"best": significant(best), "median": significant(statistics.median(values))}


# Resuming


Beginning = Callable[[Any], tuple[Iterator[Tensor], Callable[[], Any]]]
"""From a state, or None, to the batches from there on, and to what tells the state after them."""


def ours(case: Case) -> Beginning:
    def begin(state: Any) -> tuple[Iterator[Tensor], Callable[[], Any]]:
        batches = open_corpus(case.config).batches(SEQUENCES, state)
        return batches, batches.state

    return begin


def theirs(case: Case) -> Beginning:
    corpus = open_corpus(case.config)

    def begin(state: Any) -> tuple[Iterator[Tensor], Callable[[], Any]]:
        pipeline = obvious(case, corpus, corpus.tokenizer.tokenizer)
        if state is not None:
            pipeline.stream.load_state_dict(state)
        return pipeline.batches(), pipeline.stream.state_dict

    return begin


def resumption(begin: Beginning, half: int) -> Callable[[], float]:
    """What measures the seconds from nothing to the first batch after the middle, and checks that it is that one."""
    batches, state_after = begin(None)
    for _ in range(half):
        next(batches)
    state, expected = state_after(), next(batches)

    def again() -> float:
        start = time.process_time()
        found = next(begin(state)[0])
        seconds = time.process_time() - start
        if not torch.equal(found, expected):
            raise RuntimeError("a pipeline that resumes goes on with another batch")
        return seconds

    return again


def resume(tried: list[Case]) -> Seconds:
    """Seconds to resume every case in the middle of its epoch, by case and by whose pipeline it is."""
    entered = [
        (case.name, owner, resumption(begin(case), case.half()))
        for case in tried
        for owner, begin in ((OURS, ours), (THEIRS, theirs))
    ]
    turns = [[again() for _, _, again in entered] for _ in range(RESUMES)]
    found: Seconds = {case.name: {} for case in tried}
    for (name, owner, _), times in zip(entered, zip(*turns, strict=True), strict=True):
        found[name][owner] = summary(min(times), list(times))
    return found


# What is told


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    libraries = ("tokenizers", "datasets", "pyarrow", "numpy", "torch")
    return {
        **{library: version(library) for library in libraries},
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "threads": 1,
        "batch": {"sequences": SEQUENCES, "seq_len": SEQ_LEN},
    }


def targets(speed: Speeds) -> dict[str, dict[str, float]]:
    """What was aimed at beside what was reached."""
    return {
        f"{name} / {rival}": {**speed[name]["ratio_to"][rival], "target": target} for name, rival, target in TARGETS
    }


def million(value: float) -> str:
    return f"{value / 1e6:.3g}"


def table(speed: Speeds, caption: str) -> Table:
    """One row a contestant, the fastest first."""
    drawn = Table("million tokens a second", "best", "median", *(f"/ {rival}" for rival in RIVALS[:2]), caption=caption)
    for name, found in sorted(speed.items(), key=lambda item: -item[1]["best"]):
        ratios = [
            f"{found['ratio_to'][rival]['best']:.3g}  {found['ratio_to'][rival]['median']:.3g}" for rival in RIVALS[:2]
        ]
        drawn.add_row(name, million(found["best"]), million(found["median"]), *ratios)
    return drawn


def resume_table(seconds: Seconds) -> Table:
    """One row a case."""
    drawn = Table("seconds to resume", *(f"{owner}: {kind}" for owner in (OURS, THEIRS) for kind in ("best", "median")))
    for name, found in seconds.items():
        drawn.add_row(name, *(f"{value:.2f}" for owner in (OURS, THEIRS) for value in found[owner].values()))
    return drawn


def document_table(found: dict[str, Speeds], seconds: Seconds, rounds: int) -> None:
    """The same for the documentation, with the best figures alone."""
    resumes = "; ".join(
        f"{name}: {row[OURS]['best']:.2f} and {row[THEIRS]['best']:.2f}" for name, row in seconds.items()
    )
    intro = (
        f"Made by `python benchmarks/data_throughput.py --record`: million tokens a second on one thread "
        f"({cpu_model()}, tokenizers {version('tokenizers')}, datasets {version('datasets')}), best of {rounds} "
        f"interleaved rounds by process CPU time. Summaries of Wikipedia in parquet, each a document (short) or "
        f"{LONG} together (long); vocabulary 4096, batches of {SEQUENCES} x {SEQ_LEN} tokens. `datasets` tokenises and "
        "cuts in two functions, as tutorials do, or in one.\n\n"
        "CPU seconds from opening one file to the first batch after the middle of its epoch, ours and those of "
        f"`datasets` (row groups of {AT_ONCE} summaries): {resumes}."
    )
    header = ("", *(head for corpus in found for head in (f"{corpus} documents", f"/ {CEILING}")))
    names = sorted(found["short"], key=lambda name: -found["short"][name]["best"])
    write_table("data-throughput", intro, header, [[name, *documented(found, name)] for name in names])


def documented(found: dict[str, Speeds], name: str) -> Iterator[str]:
    for speed in found.values():
        yield million(speed[name]["best"])
        yield f"{speed[name]['ratio_to'][CEILING]['best']:.2f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16, help="turns that every contestant takes (default: 16)")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    return parser.parse_args()


def measure(directory: Path, rounds: int, leaving: ExitStack) -> tuple[dict[str, Speeds], Seconds]:
    """Speeds on short and on long documents, and seconds to resume."""
    every = cases(directory)
    _, _, short, _, long = every
    fields = {
        name: text_contestants(case) | stored_contestants(case.config, leaving)
        for name, case in (("short", short), ("long", long))
    }
    found = {name: speeds(turns) for name, turns in compete(fields, rounds).items()}
    return found, resume(every)


def main() -> None:
    chosen, console = arguments(), Console(width=120)
    torch.set_num_threads(1)
    with ExitStack() as leaving:
        directory = leaving.enter_context(tempfile.TemporaryDirectory())
        # The libraries that these are for read them when they are first used.
        os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "HF_HOME": f"{directory}/hub"}
        found, seconds = measure(Path(directory), chosen.rounds, leaving)
    for name, speed in found.items():
        console.print(table(speed, f"{name} documents; ratios of the best, and medians of the ratios of every round"))
        for what, reached in targets(speed).items():
            console.print(f"{what}: {', '.join(f'{key} {value}' for key, value in reached.items())}")
    console.print(resume_table(seconds))
    if chosen.record:
        figures = {"rounds": chosen.rounds, "targets": {name: targets(speed) for name, speed in found.items()}}
        measured = {"tokens_a_second": found, "resume_rounds": RESUMES, "seconds_to_resume": seconds}
        write_json("data_throughput", {"environment": environment(), **figures, **measured})
        document_table(found, seconds, chosen.rounds)


if __name__ == "__main__":
    main()
