"""Mixtures: every source by its own epochs and its share of the tokens, resumed like one, and told what is wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import expected, prepared, small_config, some_files, starting
from streams import train, train_on
from text_files import Files, some_documents, write_files

from mhc_train.config.compose import compose
from mhc_train.config.validate import validate
from mhc_train.data import open_corpus, order_fingerprint
from mhc_train.data.holdout import held_out
from mhc_train.data.mixture import components, settled
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig

SOURCES = {"a": ("jsonl", 3.0), "b": ("hub of parquet", 1), "c": ("txt", 0.5)}
STEPS, BATCH = 220, 6


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Files]:
    return {name: some_files(tmp_path / name, kind, seed) for seed, (name, (kind, _)) in enumerate(SOURCES.items())}


@pytest.fixture
def config(files: dict[str, Files], tmp_path: Path, tokenizer_file: str) -> DataConfig:
    mixture = {
        name: {"weight": SOURCES[name][1], "source": some.source, "path": some.path}
        for name, some in reversed(files.items())
    }
    return small_config(
        files["a"],
        tokenizer_file,
        tmp_path / "cache",
        source="mixture",
        path="",
        mixture=mixture,
        validation_tokens=450,
    )


def test_a_mixture_gives_the_oracles_tokens_straight_resumed_and_prepared(
    files: dict[str, Files], config: DataConfig
) -> None:
    text = open_corpus(config)
    straight, state = train(starting(text, BATCH), STEPS)
    assert straight.tolist() == expected(text, list(files.values()), [3.0, 1.0, 0.5], STEPS * BATCH)
    epochs = [[row[0] for row in lane["positions"]] for lane in state["lanes"].values()]
    assert all(lane[0] >= 2 > lane[2] for lane in epochs), epochs
    resumed, states = train_on(starting(text, BATCH), [(31, 1), (128, 2), (61, 1)])
    assert resumed.equal(straight) and states[-1] == state
    ready = open_corpus(prepared(config))
    first, middle = train(starting(ready, BATCH), 77)
    second, after = train(starting(text, BATCH), STEPS - 77, middle)
    assert torch.cat([first, second]).equal(straight) and after == state
    assert order_fingerprint(after) == order_fingerprint(state)


def test_names_decide_the_order_of_sources_not_where_they_stand(config: DataConfig) -> None:
    turned = dataclasses.replace(config, mixture=dict(reversed(config.mixture.items())))
    one, other = (open_corpus(each) for each in (config, turned))
    assert one.identity == other.identity and one.validation.sha256 == other.validation.sha256
    assert [part.share for part in components(config)] == [3 / 4.5, 1 / 4.5, 0.5 / 4.5]


def test_other_weights_are_another_order_and_are_refused(config: DataConfig) -> None:
    _, state = train(starting(open_corpus(config), BATCH), 3)
    changed = config.mixture | {"a": config.mixture["a"] | {"weight": 2}}
    with pytest.raises(DataError, match="not what the run was reading"):
        open_corpus(dataclasses.replace(config, mixture=changed)).batches(BATCH, state)


def test_validation_is_of_every_source_by_its_share(files: dict[str, Files], config: DataConfig) -> None:
    corpus = open_corpus(config)
    flat: list[int] = []
    for name, wanted in (("a", 300), ("b", 100), ("c", 50)):
        kept = [text for text in files[name].texts if text and held_out(text.encode(), 0.2)]
        flat += corpus.tokenizer.encode(kept)[0].tolist()[: wanted + 1]
    rows = (len(flat) - 1) // 8
    assert corpus.validation.blocks[:, 1:].flatten().tolist() == flat[1 : 8 * rows + 1]


def test_a_tokenizer_is_trained_on_every_source_by_its_share(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mhc_train.data import corpus, tokenizer

    seen: list[str] = []
    monkeypatch.setattr(corpus, "TRAINING_BYTES", 900)
    monkeypatch.setattr(tokenizer, "TRAINING_BYTES", 10**6)
    monkeypatch.setattr(tokenizer, "first_bytes", lambda documents, _: seen.extend(documents) or seen)
    open_corpus(dataclasses.replace(config, tokenizer=None))
    sizes = {
        seed: sum(len(text.encode()) for text in seen if int(text.partition("-")[0]) // 10 == seed) for seed in range(3)
    }
    assert all(share <= sizes[seed] < share + 300 for seed, share in enumerate((600, 200, 100)))
    assert not any(held_out(text.encode(), 0.2) for text in seen)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_what_one_source_validates_on_no_other_trains_on(
    names: tuple[str, str], tmp_path: Path, tokenizer_file: str
) -> None:
    split, hashed = some_documents(20), some_documents(20, seed=2)
    one = write_files(tmp_path / "one", "hub of parquet", [some_documents(20, seed=1) + hashed])
    write_files(tmp_path / "split", "parquet", [split])
    (tmp_path / "split" / "00.parquet").rename(tmp_path / "one" / "validation-00000.parquet")
    two = write_files(tmp_path / "two", "jsonl", [split + hashed])
    mixture = {
        names[0]: {"weight": 1, "source": "hub", "path": one.path, "validation_split": "validation"},
        names[1]: {"weight": 1, "source": "json", "path": two.path},
    }
    config = small_config(two, tokenizer_file, tmp_path, source="mixture", mixture=mixture, validation_tokens=4000)
    texts = open_corpus(config).texts
    held = [text.encode() for text in (*split, *hashed) if text in split or held_out(text.encode(), 0.2)]
    assert len(held) > 20 and not any(document in text.training for document in held for text in texts)


def test_settling_touches_every_source_and_keeps_what_it_says() -> None:
    own = {
        "x": {"weight": 2, "source": "hub", "path": "x/y", "split": "valid", "column": "body"},
        "y": {"weight": 1, "source": "json", "path": "z"},
    }
    config = DataConfig(source="mixture", mixture=own, column="content", seed=7, split="never", revision="never")
    alone = [part.config for part in components(config)]
    assert [(each.source, each.path, each.split, each.column, each.revision) for each in alone] == [
        ("hub", "x/y", "valid", "body", None), ("json", "z", "train", "content", None),
    ]  # fmt: skip
    assert all(each.seed == 7 and not each.mixture for each in alone)
    done = settled(config, lambda each: dataclasses.replace(each, revision=f"commit of {each.path}"))
    assert done.mixture == {name: each | {"revision": f"commit of {each['path']}"} for name, each in own.items()}
    assert settled(done, lambda each: each) == done and components(done)[0].config.revision == "commit of x/y"
    assert settled(config, lambda each: dataclasses.replace(each, path="wiki")).mixture["x"]["path"] == "wiki"
    single = DataConfig(source="json", path="p")
    assert settled(single, lambda each: dataclasses.replace(each, path="q")).path == "q"
    assert [(part.config, part.share) for part in components(single)] == [(single, 1.0)]


GOOD = {"weight": 1, "source": "json", "path": "x"}


@pytest.mark.parametrize(
    ("mixture", "problem"),
    [
        ({}, "data.mixture = {}: names no source. Type data=mixture"),
        ({"a": 3}, "data.mixture.a = 3: must say weight, source and path. Type data.mixture.a.weight=1"),
        ({"a": GOOD | {"weights": 1}}, "data.mixture.a.weights = 1: no such key; there is weight, source, path"),
        ({"a": GOOD | {"weight": 0}}, "data.mixture.a.weight = 0: must be a number above 0. Type data.mixture.a"),
        ({"a": GOOD | {"weight": -1.5}}, "data.mixture.a.weight = -1.5: must be a number above 0"),
        ({"a": GOOD | {"weight": True}}, "data.mixture.a.weight = True: must be a number above 0"),
        ({"a": GOOD | {"weight": "2"}}, "data.mixture.a.weight = 2: must be a number above 0"),
        ({"a": GOOD | {"weight": float("nan")}}, "data.mixture.a.weight = nan: must be a number above 0"),
        ({"a": GOOD | {"weight": float("inf")}}, "data.mixture.a.weight = inf: must be a number above 0"),
        ({"a": {"source": "json", "path": "x"}}, "data.mixture.a.weight = None: must be a number above 0"),
        ({"a": GOOD | {"source": "mixture"}}, "data.mixture.a.source = mixture: must be one of embedded, hub, parquet"),
        ({"a": {"weight": 1, "path": "x"}}, "data.mixture.a.source = None: must be one of"),
        ({"a": {"weight": 1, "source": "json"}}, "data.mixture.a.path = None: must say where the text is"),
        ({"a": GOOD | {"source": "embedded"}}, "data.mixture.a.path = x: embedded corpora are wiki and python_docs"),
    ],
)  # fmt: skip
def test_a_wrong_mixture_is_told_what_to_type(mixture: dict[str, Any], problem: str) -> None:
    config = compose(["data=mixture", "data.mixture.a={weight: 1, source: json, path: x}"])
    assert not validate(config)
    problems = validate(dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture)))
    assert [str(each)[: len(problem)] for each in problems] == [problem]


def test_every_problem_is_reported_at_once_and_a_mixture_needs_its_source() -> None:
    config = compose(["data=mixture", "data.mixture.a={weight: 1, source: json, path: x}"])
    wrong = dataclasses.replace(config.data, mixture={"a": {"weight": 0, "source": "no"}, "b": 1})
    assert len(validate(dataclasses.replace(config, data=wrong))) == 4
    other = dataclasses.replace(config.data, source="json")
    (problem,) = validate(dataclasses.replace(config, data=other))
    assert str(problem) == "data.mixture = a: needs data.source=mixture. Type data=mixture."
