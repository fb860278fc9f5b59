"""A training to its end, for the tests that only go on from there: made once, copied for each."""

import shutil
from pathlib import Path

import pytest
from tiny import overrides, run_command


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that saved at steps 2, 4, 6 and 8; not to be changed."""
    directory = tmp_path_factory.mktemp("finished")
    saves = ("train.save_every=2", "train.keep_checkpoints=9")
    with pytest.MonkeyPatch.context() as patch:
        assert run_command(patch, "fit", *overrides(directory), *saves) == 0
    (run,) = (directory / "runs").iterdir()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of one's own, the only one in its directory."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name))
