"""For every test: one thread, shape checks at run time, and a quick, repeatable hypothesis profile."""

import os

import jaxtyping
import torch
from hypothesis import settings

# Everything whose annotations state shapes. Must come before the first import of mhc_train.
SHAPED = ("mixers", "connections", "model", "diagnostics", "foreign", "training.step", "data.packing")
jaxtyping.install_import_hook([f"mhc_train.{name}" for name in SHAPED], "beartype.beartype")
torch.set_num_threads(1)
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # handing short texts to other threads takes longer than they do
settings.register_profile("quick", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("quick")
