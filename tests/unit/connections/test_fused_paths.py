"""Whole models with fused crossings: the function and gradients that the same model has step by step."""

import pytest
import torch
from torch import Tensor

from mhc_train.config.compose import compose, groups
from mhc_train.connections import Connection, Maps
from mhc_train.connections.hyper import HyperConnection
from mhc_train.connections.manifold import ManifoldConnection
from mhc_train.model import Transformer
from mhc_train.schema import ModelConfig

MODEL = ModelConfig(dim=64, layers=3, heads=4, kv_heads=2, ffn_dim=96, max_seq_len=32)
TOKENS = torch.randint(32, (3, 17), generator=torch.Generator().manual_seed(0))
OPTIONS = [[f"connection={option}"] for option in groups()["connection"]] + [
    ["connection=mhc", "connection.streams=2"],
    ["connection=mhc", "connection.streams=8"],
    ["connection=mhc", "connection.read_out=gated", "connection.expand=scaled"],
    ["connection=mhc", "connection.where=attention"],
    ["connection=hc", "connection.first_layer=1", "connection.last_layer=1"],
    ["connection=mhc", "connection.dynamic=false"],
    ["connection=mhc_single_pass", "connection.read_out=last_pre"],
]


def random_model(overrides: list[str]) -> Transformer:
    """All maps depend on the token, and the streams have parted."""
    model = Transformer(MODEL, compose(overrides).connection, 32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.path.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def results(model: Transformer) -> list[Tensor]:
    model.zero_grad()
    logits = model(TOKENS)
    logits.logsumexp(-1).square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_fused_and_eager_are_the_same_function(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(overrides)
    fused = results(model)
    monkeypatch.setenv("MHC_KERNELS", "eager")
    eager = results(model)
    assert len(fused) == len(eager)
    for one, other in zip(fused, eager, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-7


@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_step_by_step_it_is_the_same_too(overrides: list[str]) -> None:
    model = random_model(overrides)
    fused = model(TOKENS).detach()
    with model.path.step_by_step():
        assert not any(connection.fuses for connection in model.path)
        apart = model(TOKENS).detach()
    torch.testing.assert_close(fused, apart, rtol=1e-3, atol=1e-4)


# A subclass of one's own is asked, not passed over


class Halved(ManifoldConnection):
    """Maps of its own, all else inherited."""

    def maps(self, streams: Tensor) -> Maps:
        """A read of half the weight."""
        maps = super().maps(streams)
        return maps._replace(pre=maps.pre / 2)


class Cold(ManifoldConnection):
    """Logits of its own."""

    def logits(self, streams: Tensor) -> Tensor:
        """So low that nothing is read."""
        return super().logits(streams) - 100


class Doubled(HyperConnection):
    """A read of its own."""

    def read(self, streams: Tensor, pre: Tensor) -> Tensor:
        """Twice."""
        return 2 * super().read(streams, pre)


class Silent(ManifoldConnection):
    """A write of its own."""

    def write(self, streams: Tensor, output: Tensor, maps: Maps) -> Tensor:
        """Nothing."""
        return streams


def own(cls: type[Connection], kind: str) -> Connection:
    return cls(compose([f"connection={kind}"]).connection, 32, 0, 4)


@pytest.mark.parametrize(("cls", "kind", "factor"), [(Halved, "mhc", 0.5), (Cold, "mhc", 0.0), (Doubled, "hc", 2.0)])
def test_a_subclass_with_a_step_of_its_own_is_not_fused(cls: type[Connection], kind: str, factor: float) -> None:
    connection, streams = own(cls, kind), torch.randn(1, 5, 4, 32)
    assert not connection.fuses
    inherited = own(cls.__bases__[0], kind)
    inherited.load_state_dict(connection.state_dict())
    assert inherited.fuses
    torch.testing.assert_close(connection.enter(streams)[1], factor * inherited.enter(streams)[1])


def test_a_write_of_ones_own_is_called() -> None:
    silent, follower = own(Silent, "mhc"), own(ManifoldConnection, "mhc")
    streams, output = torch.randn(1, 5, 4, 32), torch.randn(1, 5, 32)
    written, _, _ = follower.cross(silent, streams, output, silent.maps(streams))
    assert torch.equal(written, streams)
