"""Connections: how a sublayer reads from the residual streams and writes back to them."""

from mhc_train.config.schema import ConnectionConfig
from mhc_train.connections.hyper import HyperConnection
from mhc_train.connections.interface import Connection, Maps
from mhc_train.connections.manifold import ManifoldConnection
from mhc_train.connections.path import Path, State
from mhc_train.connections.read_out import READ_OUTS
from mhc_train.connections.residual import Residual

CONNECTIONS: dict[str, type[Connection]] = {
    "residual": Residual,
    "hc": HyperConnection,
    "mhc": ManifoldConnection,
}
"""Every connection by the name that `connection.kind` takes."""


def build_path(config: ConnectionConfig, dim: int, sublayers: int) -> Path:
    """The residual path of a model of width `dim` with that many sublayers (two a transformer layer)."""
    # mHC of one stream has nothing to mix or to gate: it is defined as the plain residual.
    kind = Residual if config.kind == "mhc" and config.streams == 1 else CONNECTIONS[config.kind]
    connections = [kind(config, dim, index) for index in range(sublayers)]
    return Path(connections, READ_OUTS[config.read_out](config.streams, dim))


__all__ = ["CONNECTIONS", "Connection", "Maps", "Path", "State", "build_path"]
