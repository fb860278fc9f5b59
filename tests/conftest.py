"""For every test: one torch thread, shape checks at run time, and a quick, repeatable hypothesis profile."""

import jaxtyping
import torch
from hypothesis import settings

# Must come before the first import of mhc_train.
jaxtyping.install_import_hook("mhc_train", "beartype.beartype")
torch.set_num_threads(1)
settings.register_profile("quick", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("quick")
