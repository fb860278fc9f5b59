"""mhc-train: train, compare and audit language models whose residual stream is a hyper-connection."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mhc-train")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"
