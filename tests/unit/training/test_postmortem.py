"""What is kept of a batch that broke a training: all of it, a micro-batch at a time, and where it went wrong."""

import math
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, ConnectionConfig, ModelConfig, TrainConfig
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import lay_out
from mhc_train.training.postmortem import postmortem
from mhc_train.training.results import Outcome

MODEL = ModelConfig(dim=16, layers=2, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)
BATCH = torch.randint(32, (5, 9), generator=torch.Generator().manual_seed(0))
CPU = choose_device(TrainConfig(device="cpu"))


def described(model: Transformer, micro_batch: int = 2) -> dict:
    tokenizer = Mock(decode=lambda ids: " ".join(map(str, ids)))
    outcome = Outcome(3, math.nan, math.inf, True, BATCH)
    return postmortem(lay_out(model, Config(), Ranks()), outcome, 2, micro_batch, tokenizer, CPU)


def test_every_sequence_is_there_with_its_loss() -> None:
    model = Transformer(MODEL, ConnectionConfig(), 32)
    document = described(model)
    (rank,) = document["ranks"]
    logits = model(BATCH[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), BATCH[:, 1:], reduction="none").mean(1)
    assert [sequence["loss"] for sequence in rank["sequences"]] == pytest.approx(losses.tolist(), rel=1e-5)
    assert [sequence["number"] for sequence in rank["sequences"]] == [10, 11, 12, 13, 14]
    assert rank["sequences"][1]["text"] == " ".join(map(str, BATCH[1].tolist()))
    assert (document["loss"], document["grad_norm"], document["weights_after_step"]) == (None, None, 2)
    assert rank["gradients_not_finite"] == [] and rank["problem"] is None


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_the_ledger_is_of_the_whole_batch(micro_batch: int) -> None:
    model = Transformer(MODEL, ConnectionConfig(), 32)
    (rank,) = described(model, micro_batch)["ranks"]
    assert [row["name"] for row in rank["ledger"]] == [*model.sublayer_names(), "read_out"]
    streams = model.embedding(BATCH[:, :-1])
    assert rank["ledger"][0]["energy"] == pytest.approx(4 * streams.square().sum(-1).mean().item(), rel=1e-5)
    assert rank["ledger"][0]["largest"] == pytest.approx(streams.abs().max().item())


def test_where_it_begins_to_be_no_number_is_seen() -> None:
    model = Transformer(MODEL, ConnectionConfig(), 32)
    with torch.no_grad():
        model.feedforward[0].down.weight[0, 0] = math.nan
    (rank,) = described(model)["ranks"]
    assert [row["output_energy"] is None for row in rank["ledger"]] == [False, True, True, True, True]
    assert [row["largest"] is None for row in rank["ledger"]] == [False, False, True, True, True]
    assert all(sequence["loss"] is None for sequence in rank["sequences"])
    assert "feedforward.0.down.weight" in rank["gradients_not_finite"]


def test_no_more_than_a_micro_batch_is_run_at_once_and_a_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(MODEL, ConnectionConfig(), 32)
    genuine, sizes = model.forward, []

    def forward(tokens: Tensor, **options: object) -> Tensor:
        sizes.append(len(tokens))
        if len(sizes) == 5:
            raise torch.OutOfMemoryError("out of memory")
        return genuine(tokens, **options)

    monkeypatch.setattr(model, "forward", forward)
    (rank,) = described(model)["ranks"]
    assert max(sizes) == 2 and rank["problem"] == "out of memory" and rank["gradients_not_finite"] is None
    assert [sequence["loss"] is None for sequence in rank["sequences"]] == [False] * 4 + [True]
