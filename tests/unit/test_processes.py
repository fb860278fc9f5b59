"""What a process answers, and what became of one that does not."""

import pytest

from mhc_train.processes import fate, understood


def test_why_a_process_is_no_more() -> None:
    assert fate(-9, "half a line") == "its process was killed by SIGKILL, perhaps for want of memory"
    assert fate(1, "Traceback\nRuntimeError: out of memory\n\n") == "RuntimeError: out of memory"
    assert fate(3, " \n") == "its process ended with exit code 3"


def test_an_answer_is_one_json_object() -> None:
    assert understood('{"wall": 1.5}\n') == {"wall": 1.5}


@pytest.mark.parametrize("said", ["", "Loading kernels\n", '{"wall": 1', "3\n", "null"])
def test_anything_else_is_an_error(said: str) -> None:
    assert set(understood(said)) == {"error"}
    assert repr(said.strip()) in understood(said)["error"]
