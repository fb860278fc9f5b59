"""Other people's checkpoints: their hyper-connections alone are read, and become what measurements are made of."""

from pathlib import Path

from mhc_train.foreign.assembly import open_foreign
from mhc_train.foreign.families import FAMILIES
from mhc_train.foreign.model import ForeignModel
from mhc_train.foreign.on_text import observe_on_text
from mhc_train.foreign.stores import HUB_NAME, looks_local


def is_foreign(target: str) -> bool:
    """Whether it is a folder with safetensors files that is none of our checkpoints, or the name of a Hub's model."""
    folder = Path(target)
    if folder.is_dir():
        files = {path.name for path in folder.iterdir()}
        ours = "manifest.json" in files
        return not ours and any(name.endswith((".safetensors", ".safetensors.index.json")) for name in files)
    return HUB_NAME.fullmatch(target) is not None and not looks_local(target)


__all__ = ["FAMILIES", "ForeignModel", "is_foreign", "observe_on_text", "open_foreign"]
