"""What `data inspect` says of a text is what is in it."""

from pathlib import Path

import numpy as np
from corpora import expected, prepared, small_config, starting
from streams import train
from text_files import some_documents, write_files

from mhc_train.data import open_corpus, order_fingerprint
from mhc_train.data.holdout import held_out
from mhc_train.data.inspection import inspect
from mhc_train.schema import Config, TrainConfig


def test_documents_tokens_and_order_are_told_as_they_are(tmp_path: Path, tokenizer_file: str) -> None:
    documents = some_documents(40)
    documents[5::10] = ["", "unreadable", "unreadable", ""]
    files = write_files(tmp_path / "text", "jsonl", [documents, some_documents(9, seed=1)])
    data = small_config(files, tokenizer_file, tmp_path / "cache", on_error="skip")
    corpus = open_corpus(data)
    told = inspect(Config(data=data, train=TrainConfig(batch_tokens=32)), documents=30, steps=7)
    (source,) = told["sources"]
    first = files.texts[:30]
    readable = [text for text in first if text and not text.startswith("unreadable")]
    training = [text for text in readable if not held_out(text.encode(), 0.2)]
    lengths = corpus.tokenizer.encode(training)[1]
    assert source["first_documents"] == {
        "records": 30,
        "training": len(training),
        "held_out": len(readable) - len(training),
        "empty": first.count(""),
        "unreadable": first.count("unreadable"),
        "tokens": lengths.sum(),
        "tokens_per_document": {
            "median": np.median(lengths), "p99": np.percentile(lengths, 99), "max": lengths.max()
        },
        "bytes_per_token": sum(len(text.encode()) for text in training) / lengths.sum(),
    }  # fmt: skip
    assert (source["files"], source["share"], source["parts_a_lane"], source["whole_files"]) == (2, 1.0, 2, False)
    _, state = train(starting(corpus, 4), 7)
    assert told["order"] == {"steps": 7, "tokens": 7 * 32, "fingerprint": order_fingerprint(state)}
    assert told["sample"] == corpus.tokenizer.decode(expected(corpus, [files], [1.0], 1)[0])
    assert told["validation"] == {
        "sha256": corpus.validation.sha256, "sequences": 32, "tokens": 256,
        "bytes_per_token": corpus.validation.bytes_per_token,
    }  # fmt: skip
    assert source["prepared"] is None
    again = inspect(Config(data=prepared(data), train=TrainConfig(batch_tokens=32)), documents=30, steps=7)
    assert Path(again["sources"][0]["prepared"]).is_dir() and again["order"] == told["order"]


def test_a_text_without_training_documents_among_the_first_has_no_lengths(tmp_path: Path, tokenizer_file: str) -> None:
    files = write_files(tmp_path / "text", "parquet", [["", "", *some_documents(30)]])
    data = small_config(files, tokenizer_file, tmp_path / "cache")
    told = inspect(Config(data=data, train=TrainConfig(batch_tokens=32)), documents=2, steps=1)
    statistics = told["sources"][0]["first_documents"]
    assert statistics["tokens"] == 0 and statistics["bytes_per_token"] is None
    assert statistics["tokens_per_document"] == {"median": None, "p99": None, "max": None}
