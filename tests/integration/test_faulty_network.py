"""A source that fails and recovers changes no token; one that fails for good is one clear error, and costs nothing."""

import dataclasses
import errno
import functools
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import faulty
import pytest
from faulty import Fault, Refusal, failing
from hub import COMMIT, NEWER, Hub, Repository, ask, in_a_row, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from text_files import some_documents, write_files
from tiny import TINY, run_command

from mhc_train import progress
from mhc_train.data import State, loader, open_corpus, order_fingerprint, sources
from mhc_train.data import corpus as corpora
from mhc_train.data.prepare import prepare
from mhc_train.data.retry import Retry, passes
from mhc_train.errors import DataError
from mhc_train.files import read_json_lines
from mhc_train.schema import DataConfig
from mhc_train.training import loop, running

KINDS = ("parquet", "jsonl", "jsonl.gz")
SMALL: dict[str, Any] = {
    "seq_len": 16, "lanes": 4, "shuffle_block": 8, "holdout": 0.2, "validation_tokens": 128, "workers": 0,
    "vocab_size": 300,
}  # fmt: skip
BATCHES = 10
TIMINGS = ("tokens_per_second", "data_wait")


def local_config(directory: Path, kind: str, scheme: str = "", **changes: Any) -> DataConfig:
    """Three shards of a kind in `directory/kind`, written on first use."""
    if not (directory / kind).exists():
        write_files(directory / kind, f"hub of {kind}", [some_documents(30, seed) for seed in range(3)])
    source = "parquet" if kind == "parquet" else "json"
    path = f"{scheme}{directory / kind / f'*.{kind}'}"
    return DataConfig(source=source, path=path, cache_dir=str(directory / "cache"), **SMALL | changes)


def read(config: DataConfig, batches: int = BATCHES, state: State | None = None) -> tuple[list[Any], State]:
    stream = open_corpus(config).batches(4, state)
    tokens = [next(stream).tolist() for _ in range(batches)]
    stream.close()
    return tokens, json.loads(json.dumps(stream.state()))


class Answers(NamedTuple):
    """What came of reading from the Hub, and the Hub."""

    hub: Hub
    of: dict[str, dict[str, Any]]
    directory: Path


CONFIGURED = {
    "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: train-*.jsonl\n---\n",
    ".huggingface.yaml": b"configs:\n- config_name: default\n  data_files: train-0000[01].jsonl\n",
}
OPENING = {
    "none": in_a_row("nothing"),
    "commit": in_a_row(r"GET /api/datasets/[^/]+/[^/]+$", "503", "cut"),
    "card": in_a_row(r"HEAD .*/README.md", *["503"] * 8),
    "layout": in_a_row(r"HEAD .*/.huggingface.yaml", *["503"] * 8),
    "listing": in_a_row(r"GET .*/tree/", *["502"] * 7, "cut"),
}
"""Faults of each request that finds the shards; the Hub's client itself tries most of them six times."""


def while_reading() -> Callable[[str], str | None]:
    """Faults of the shards' content: more in a row than the Hub's client takes, more kinds, one every few requests."""
    script = chain(["503"] * 7, [None, "late", None], ["429"] * 6, [None] * 3, ["cut"] * 8)
    return in_a_row(r"GET .*/train-", *script, *[None, None, "502", "cut", None, "429"] * 50)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    directory = tmp_path_factory.mktemp("hub")
    with serving() as hub:
        jobs = dict(_readings(hub, directory) | _commands(hub, directory))
        yield Answers(hub, dict(zip(jobs, ask(hub, directory / "home", list(jobs.values())), strict=True)), directory)


def _readings(hub: Hub, directory: Path) -> dict[str, dict[str, Any]]:
    def reading(path: str, **changes: Any) -> dict[str, Any]:
        config = {"source": "hub", "path": path, "cache_dir": str(directory / "cache")} | SMALL | changes
        return {"config": config, "batches": BATCHES}

    for kind in KINDS:
        local = local_config(directory, kind)
        files = {path.name: path.read_bytes() for path in Path(local.path).parent.iterdir()}
        hub.repositories[f"sound/{kind}"] = Repository(files)
        hub.repositories[f"faulty/{kind}"] = Repository(files, fault=while_reading())
    lines = hub.repositories["sound/jsonl"].files
    for name, fault in OPENING.items():
        hub.repositories[f"opening/{name}"] = Repository(lines | CONFIGURED, fault=fault)
    write_files(directory / "rows", "hub of csv", [some_documents(30, seed) for seed in range(2)])
    rows = {path.name: path.read_bytes() for path in (directory / "rows").iterdir()}
    hub.repositories["sound/rows"] = Repository(rows)
    hub.repositories["faulty/rows"] = Repository(rows, fault=in_a_row(r"GET .*/revision/", None, None, "503"))
    newer = {name: content for name, content in lines.items() if "00000" not in name}
    hub.repositories["moved/on"] = Repository(lines, newer=newer)
    hub.repositories["moved/pinned"] = Repository(lines, newer=newer)
    names = list(hub.repositories)
    return {name: reading(name) for name in names} | {
        "moved/pinned": reading("moved/pinned", revision=COMMIT),
        "no such split": reading("sound/parquet", split="test"),
        "no such name": reading("opening/none", name="other"),
    }


def _commands(hub: Hub, directory: Path) -> dict[str, dict[str, Any]]:
    def fit(name: str, runs: str, *more: str) -> dict[str, Any]:
        where = [f"data.cache_dir={directory / 'cache'}", f"runs_dir={directory / runs}"]
        own = ["data=tinystories", f"data.path={name}", "data.validation_split=null", "data.lanes=2", "data.retries=2"]
        return {"command": ["fit", *own, *where, *TINY, "optim.schedule=constant", "diagnostics.every=0", *more]}

    lines = hub.repositories["sound/jsonl"].files
    hub.repositories["never/again"] = Repository(lines, fault=in_a_row(r"GET .*/train-", *["503"] * 99))
    later = hub.repositories["moved/later"] = Repository(lines)
    runs: list[str] = []

    def move(request: str) -> None:
        """Commit something else once the second run has asked for the commit."""
        runs.append(request)
        if sum(asked.endswith("/moved/later") for asked in runs[:-1]) == 2:
            later.newer = {"other.jsonl": b'{"text": "other"}'}

    later.fault = move
    return {
        "never/seen": fit("never/seen", "never"),
        "never/again": fit("never/again", "never"),
        "straight": fit("moved/later", "straight"),
        "short": fit("moved/later", "short", "train.steps=4"),
        "resumed": {"command": ["fit", "--resume", f"{directory / 'short'}/*", "train.steps=8"]},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_gives_the_tokens_of_the_same_files_here(kind: str, answers: Answers) -> None:
    answer = answers.of[f"sound/{kind}"]
    tokens, state = read(local_config(answers.directory, kind))
    assert answer["tokens"] == tokens and answer["order"] == order_fingerprint(state)
    assert answer["validation"] == open_corpus(local_config(answers.directory, kind)).validation.sha256
    assert answer["pauses"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_faults_while_reading_from_the_hub_change_no_token(kind: str, answers: Answers) -> None:
    sound, answer = answers.of[f"sound/{kind}"], answers.of[f"faulty/{kind}"]
    assert [answer[key] for key in ("tokens", "order", "validation")] == [
        sound[key] for key in ("tokens", "order", "validation")
    ]
    assert "Attempt 2 of 8" in answer["said"]  # ours, after the six of the Hub's client
    assert "Attempt 2 of 8 in 7.0 s" in answer["said"] and 7.0 in answer["pauses"]  # as Retry-After says


@pytest.mark.parametrize("request_name", [name for name in OPENING if name != "none"])
def test_faults_while_the_shards_are_found_change_no_token(request_name: str, answers: Answers) -> None:
    sound, answer = answers.of["opening/none"], answers.of[f"opening/{request_name}"]
    assert answer.get("error") is None
    assert answer["order"] == sound["order"] and answer["pauses"]


def test_faults_while_rows_are_found_change_no_token(answers: Answers) -> None:
    sound, answer = answers.of["sound/rows"], answers.of["faulty/rows"]
    assert answer.get("error") is None
    assert answer["order"] == sound["order"] and answer["pauses"]


def test_the_commit_is_pinned_recorded_and_asked_for_again(answers: Answers) -> None:
    assert answers.of["sound/jsonl"]["revision"] == COMMIT
    assert answers.of["moved/on"]["revision"] == NEWER
    assert answers.of["moved/on"]["order"] != answers.of["sound/jsonl"]["order"]
    assert answers.of["moved/pinned"]["revision"] == COMMIT
    assert answers.of["moved/pinned"]["order"] == answers.of["sound/jsonl"]["order"]
    for name, commit in (("sound/jsonl", COMMIT), ("moved/on", NEWER), ("moved/pinned", COMMIT)):
        first, *others = answers.hub.repositories[name].requests
        assert all(f"/{commit}" in request for request in others)


def test_a_resumed_run_reads_the_commit_that_it_began_with(answers: Answers) -> None:
    assert [answers.of[name]["code"] for name in ("straight", "short", "resumed")] == [0, 0, 0]
    straight, resumed = (next((answers.directory / name).glob("*/status.json")) for name in ("straight", "short"))
    assert answers.hub.repositories["moved/later"].commit == NEWER
    orders = [json.loads(status.read_text())["order_fingerprint"] for status in (straight, resumed)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("no such split", ["the Hub data set sound/parquet has no split test. It has train."]),
        ("no such name", ["the Hub data set opening/none (other) cannot be read", "default"]),
    ],
)
def test_what_the_hub_does_not_have_is_named(name: str, parts: list[str], answers: Answers) -> None:
    error = answers.of[name]["error"]
    assert error.startswith("DataError: ") and all(part in error for part in parts)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("never/seen", ["the Hub data set never/seen cannot be read", "401"]),
        ("never/again", ["train-00000.jsonl cannot be read: tried 2 times in ", "503", "data.retries=N"]),
    ],
)
def test_a_hub_that_refuses_for_good_ends_with_3(name: str, parts: list[str], answers: Answers) -> None:
    answer = answers.of[name]
    last = answer["said"].splitlines()[-1]
    assert answer["code"] == 3 and last.startswith("error: ") and all(part in last for part in parts)
    assert "Traceback" not in answer["said"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for a faulty store; nobody waits, and little is made at once."""
    monkeypatch.setattr(corpora, "Retry", functools.partial(Retry, sleep=faulty.no_pause))
    monkeypatch.setattr(sources, "FIRST_CONTACT", dataclasses.replace(sources.FIRST_CONTACT, sleep=faulty.no_pause))
    monkeypatch.setattr(loader, "LEAST_TOKENS", 64)
    faulty.pauses.clear()
    return tmp_path


FAULTS: list[Fault] = [
    ConnectionResetError,
    TimeoutError,
    functools.partial(Refusal, 502),
    functools.partial(Refusal, 429, Retry_After="3"),
]
schedules = st.lists(st.sampled_from([None, None, *FAULTS]), max_size=60)


@pytest.mark.parametrize("kind", ["jsonl.zst", *KINDS])
@given(script=schedules, later=schedules, first=st.integers(1, 39))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_schedule_of_faults_changes_a_token(
    kind: str, store: Path, script: list[Fault], later: list[Fault], first: int
) -> None:
    config = local_config(store, kind, "faulty://", retries=200)
    tokens, state = read(config, 40)
    with failing(chain([None] * 3, script)):  # found, then fails
        begun, between = read(config, first)
    with failing(chain([None] * 3, later)):
        resumed, after = read(config, 40 - first, between)
    assert begun + resumed == tokens and after == state


@pytest.mark.parametrize("fault", [*FAULTS, PermissionError], ids=["reset", "late", "502", "429", "forbidden"])
@pytest.mark.parametrize("path", ["*.jsonl", "*/*.jsonl", "[0]/*.jsonl", "1/02.jsonl"])
def test_a_fault_while_files_are_listed_drops_none(path: str, fault: Fault, store: Path) -> None:
    for number, directory in enumerate((store, store / "0", store / "1")):
        write_files(directory, "jsonl", [some_documents(5, seed=3 * number + shard) for shard in range(3)])
    pattern = f"faulty://{store}/{path}"
    with failing() as sound:
        every = sources._files(pattern)
    for place in range(len(sound.asked)):
        with failing([*[None] * place, fault]):
            try:
                assert sources._files(pattern) == every
            except DataError as error:
                assert fault is PermissionError and pattern in str(error)


def test_directories_in_a_store_are_no_files(store: Path) -> None:
    files = write_files(store / "text", "jsonl", [some_documents(5)])
    (store / "text" / "directory.jsonl").mkdir()
    assert list(sources._files(f"faulty://{files.path}")) == [f"faulty://{store}/text/00.jsonl"]


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, functools.partial(Refusal, 403)], ids=str)
@pytest.mark.parametrize("operation", ["info", "open", "read"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_pass_is_said_at_once(kind: str, operation: str, error: Fault, store: Path) -> None:
    config = local_config(store, kind, "faulty://")
    corpus = open_corpus(config)
    with failing() as sound:
        next(corpus.batches(4))
    place = next(number for number, asked in enumerate(sound.asked) if asked.startswith(operation))
    with failing([*[None] * place, error]), pytest.raises(DataError, match=rf"faulty://.*\.{kind}"):
        next(corpus.batches(4))
    assert faulty.pauses == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_fails_for_good_is_tried_so_often(kind: str, store: Path) -> None:
    corpus = open_corpus(local_config(store, kind, "faulty://", retries=5))
    with failing(repeat(TimeoutError)), pytest.raises(DataError, match=r"tried 5 times in .*data\.retries=N"):
        next(corpus.batches(4))
    assert len(faulty.pauses) == 4


def test_faults_while_tokens_are_prepared_change_none_of_them(store: Path) -> None:
    config = local_config(store, "jsonl", "faulty://", prepared="never")
    tokens, state = read(config)
    with failing() as sound:
        prepare(dataclasses.replace(config, cache_dir=str(store / "sound")), tokens=True)
    for place in range(4, len(sound.asked)):  # found, then fails
        always = dataclasses.replace(config, cache_dir=str(store / str(place)), prepared="always")
        with failing([*[None] * place, ConnectionResetError, TimeoutError]):
            prepare(dataclasses.replace(always, prepared="never"), tokens=True)
        assert read(always) == (tokens, state)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        http.client.IncompleteRead(b"half"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_says_that_a_network_is_away_passes(error: Exception) -> None:
    assert passes(error)


class Number(NamedTuple):
    """An item of a list that is read with faults."""

    cursor: int


def reading(faults: Iterator[bool], items: int) -> Callable[[int | None], Iterator[Number]]:
    def read_from(cursor: int | None) -> Iterator[Number]:
        for number in range(cursor or 0, items):
            if next(faults, False):
                raise ConnectionResetError("cut")
            yield Number(number)

    return read_from


@given(faults=st.lists(st.booleans(), max_size=99), items=st.integers(0, 20))
def test_reading_goes_on_where_it_was_cut(faults: list[bool], items: int) -> None:
    retry = Retry(100, sleep=faulty.no_pause)
    assert list(retry.iterate(reading(iter(faults), items), None, "it")) == [Number(number) for number in range(items)]


def test_only_failures_in_a_row_count() -> None:
    twice_before_each = chain.from_iterable(repeat([True, True, False, False], 50))
    assert len(list(Retry(3, sleep=faulty.no_pause).iterate(reading(twice_before_each, 20), None, "it"))) == 20
    with pytest.raises(DataError, match="it cannot be read: tried 3 times"):
        list(Retry(3, sleep=faulty.no_pause).iterate(reading(chain([False] * 9, repeat(True)), 20), None, "it"))


def pauses_of(error: Callable[[], Exception], **changes: Any) -> list[float]:
    def attempt() -> None:
        raise error()

    pauses: list[float] = []
    with pytest.raises(DataError):
        Retry(12, sleep=pauses.append, **changes).call(attempt, "it")
    return pauses


def test_pauses_double_up_to_the_longest_and_never_are_the_same() -> None:
    many = [pauses_of(ConnectionResetError, first_delay=1.0, longest_delay=60.0) for _ in range(9)]
    for longest, pauses in zip([1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60], zip(*many, strict=True), strict=True):
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


@pytest.mark.parametrize(("header", "least"), [("90", 90), ("0", 0.5), ("soon", 0.5)])
def test_a_server_may_ask_for_a_longer_pause(header: str, least: float) -> None:
    pauses = pauses_of(functools.partial(Refusal, 503, Retry_After=header))
    assert min(pauses) >= least and len(pauses) == 11


def test_a_store_that_fails_a_worker_is_an_error_here_and_costs_no_token(store: Path) -> None:
    config = local_config(store, "jsonl.gz", "faulty://", retries=3)
    tokens, state = read(config, 300)
    stream = open_corpus(dataclasses.replace(config, workers=2)).batches(4)
    delivered = [next(stream).tolist()]
    (store / "jsonl.gz" / "down").touch()
    with pytest.raises(DataError, match=r"faulty://.*tried 3 times") as raised:
        delivered += (batch.tolist() for batch in islice(stream, 299))
    assert "\n" not in str(raised.value)
    between = json.loads(json.dumps(stream.state()))
    stream.close()
    (store / "jsonl.gz" / "down").unlink()
    resumed, after = read(config, 300 - len(delivered), between)
    assert delivered + resumed == tokens and after == state


def fit(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str, *more: str) -> tuple[int, Path]:
    """The exit code and the run directory of a training on many small files of the faulty store."""
    if not (directory / "text").exists():
        write_files(directory / "text", "jsonl", [some_documents(5, seed) for seed in range(40)])
    own = ["data=json", f"data.path=faulty://{directory}/text/*.jsonl", "data.lanes=2", "data.workers=0"]
    where = [f"data.cache_dir={directory / 'cache'}", f"runs_dir={directory / name}"]
    code = run_command(monkeypatch, "fit", *own, *where, *TINY, "data.retries=3", "train.log_every=3", *more)
    return code, next((directory / name).iterdir())


def fail_after(monkeypatch: pytest.MonkeyPatch, step: int, down: Path) -> None:
    update = progress.Progress.update

    def updating(self: progress.Progress, done: int, facts: str) -> None:
        update(self, done, facts)
        if done == step:
            down.touch()

    monkeypatch.setattr(progress.Progress, "update", updating)


@pytest.mark.parametrize(("fails_after", "save_every"), [(2, 4), (5, 1)])
def test_a_store_that_fails_a_training_for_good_costs_no_step(
    fails_after: int, save_every: int, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, straight = fit(monkeypatch, store, "straight", f"train.save_every={save_every}")
    assert code == 0
    with monkeypatch.context() as context:
        fail_after(context, fails_after, store / "text" / "down")
        capsys.readouterr()
        code, run = fit(context, store, "failed", f"train.save_every={save_every}")
    message = capsys.readouterr().err.splitlines()[-1]
    latest = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    assert code == 3 and fails_after <= latest < 8
    assert "tried 3 times" in message and f"Step {latest} is saved: `mhc-train fit --resume {run}` goes on." in message
    assert json.loads((run / "status.json").read_text())["status"] == "failed"

    (store / "text" / "down").unlink()
    assert run_command(monkeypatch, "fit", "--resume", str(run)) == 0
    for name in ("model", "optimizer"):
        expected, found = (
            load_file(path / f"checkpoints/step-00000008/{name}.safetensors") for path in (straight, run)
        )
        assert expected.keys() == found.keys() and all(expected[key].equal(found[key]) for key in expected)
    lines = [read_json_lines(path / "metrics.jsonl") for path in (straight, run)]
    without_timings = [[{k: v for k, v in line.items() if k not in TIMINGS} for line in part] for part in lines]
    assert without_timings[0] == without_timings[1]
    orders = [json.loads((path / "status.json").read_text())["order_fingerprint"] for path in (straight, run)]
    assert orders[0] == orders[1]


def test_a_store_that_fails_before_the_first_step_leaves_nothing_to_resume(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_at_once(*arguments: Any) -> None:
        (store / "text" / "down").touch()
        loop.train(*arguments)

    assert fit(monkeypatch, store, "before")[0] == 0  # the tokenizer and the validation set are kept from here on
    with monkeypatch.context() as context:
        context.setattr(running, "train", fails_at_once)
        capsys.readouterr()
        code, run = fit(context, store, "at once")
    message = capsys.readouterr().err.splitlines()[-1]
    assert code == 3 and "tried 3 times" in message and "--resume" not in message
    assert not list((run / "checkpoints").glob("step-*"))
