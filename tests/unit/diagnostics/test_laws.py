"""Verdicts find the faults that are planted, name the sublayer, and leave sound paths alone."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mhc_train.config.compose import compose, groups
from mhc_train.diagnostics import Observation, measure, observe
from mhc_train.diagnostics.laws import RULES
from mhc_train.diagnostics.observation import Crossing
from mhc_train.model import Transformer
from mhc_train.schema import ConnectionConfig, ModelConfig

MODEL = ModelConfig(dim=16, layers=3, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)
BLOCKS = torch.randint(32, (3, 13), generator=torch.Generator().manual_seed(0))
FAULTY, NAME = 3, "layers.1.feedforward"


def trained(config: ConnectionConfig, amount: float = 0.3) -> Transformer:
    """A model whose streams have parted and whose mixers have moved, as if by training."""
    model = Transformer(MODEL, config, 32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
        for parameter in model.path.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)
    return model


def verdicts(model: Transformer, start: Transformer | None = None) -> dict[str, dict[str, Any]]:
    document = measure(observe(model, BLOCKS, None if start is None else start.path))
    return {law["law"]: law for law in document["laws"]}


def replace_mixer(
    model: Transformer, faulty: Callable[[Tensor], Tensor], sublayers: range = range(FAULTY, FAULTY + 1)
) -> None:
    for index in sublayers:
        mixer = model.path[index].mixer
        mixer.forward = lambda logits, sound=mixer.forward: faulty(sound(logits))


def test_an_amplifying_mixer() -> None:
    model = Transformer(MODEL, ConnectionConfig(kind="hc"), 32)
    with torch.no_grad():
        model.path[FAULTY].bias_res.mul_(1.3)
    found = verdicts(model)
    for law in ("mass", "time_symmetry", "dissipation"):
        assert (found[law]["verdict"], found[law]["worst"]) == ("fail", NAME)
    assert found["dissipation"]["evidence"]["value"] == pytest.approx(1.3, rel=1e-5)
    assert found["closure_forward"]["verdict"] == "ok"  # one mixer of 1.3 is no explosion yet


def test_a_sinkhorn_that_normalises_columns_alone() -> None:
    model = trained(ConnectionConfig(mixer="sinkhorn"), amount=1.0)
    mixer = model.path[FAULTY].mixer
    mixer.forward = lambda logits: mixer.matrices(logits).softmax(-2)
    found = verdicts(model)
    assert (found["time_symmetry"]["verdict"], found["time_symmetry"]["worst"]) == ("fail", NAME)
    assert (found["declared"]["verdict"], found["declared"]["worst"]) == ("fail", NAME)
    assert found["declared"]["evidence"]["measure"] == "error of time_symmetry"


def test_a_mixer_that_is_read_with_the_wrong_orientation() -> None:
    """Rows are exact at any logits, columns are not: transposed, the exact side is the wrong one."""
    model = trained(ConnectionConfig(mixer="sinkhorn", gate_init=1.0), amount=3.0)
    assert verdicts(model)["declared"]["verdict"] == "ok"
    replace_mixer(model, lambda H: H.mT, range(6))
    found = verdicts(model)["declared"]
    assert found["verdict"] == "fail" and found["evidence"]["measure"] == "error of time_symmetry"
    assert "orientation" in found["advice"]


def test_a_sinkhorn_that_has_not_converged_is_explained_by_its_logits() -> None:
    model = trained(ConnectionConfig(mixer="sinkhorn"), amount=0.0)
    with torch.no_grad():
        model.path[FAULTY].bias[8:] = 6 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    found = verdicts(model)["convergence"]
    assert (found["verdict"], found["worst"]) == ("warn", NAME) and found["evidence"]["value"] > 0.01
    assert found["evidence"]["logit_range"] > 12
    model.path[FAULTY].mixer.iterations = 2  # by which it declares no more than the side that it ends on
    assert verdicts(model)["mass"]["verdict"] == "fail" and verdicts(model)["mass"]["worst"] == NAME
    assert verdicts(trained(ConnectionConfig(mixer="birkhoff")))["convergence"]["verdict"] == "not applicable"


def test_a_starved_stream() -> None:
    model = Transformer(MODEL, ConnectionConfig(kind="hc"), 32)
    with torch.no_grad():
        model.path[FAULTY].bias_res.view(4, 4)[2] = 0  # stream 2 receives nothing
        model.path[FAULTY].bias_post[2] = 0
    found = verdicts(model)
    assert (found["starved_stream"]["verdict"], found["starved_stream"]["worst"]) == ("fail", NAME)
    assert found["no_packet_left_behind"]["verdict"] == "fail" and found["no_packet_left_behind"]["worst"] == NAME


def test_a_hub() -> None:
    model = Transformer(MODEL, ConnectionConfig(kind="hc"), 32)
    with torch.no_grad():
        model.path[FAULTY].bias_res.zero_().view(4, 4)[1] = 1  # stream 1 receives all
    found = verdicts(model)["hub"]
    assert (found["verdict"], found["worst"]) == ("fail", NAME)


def test_identical_streams() -> None:
    model = trained(ConnectionConfig(mixer="sinkhorn", expand="scaled"))
    assert verdicts(model)["distinct_streams"]["verdict"] == "ok"
    with torch.no_grad():
        connection = model.path[FAULTY]
        connection.gate.zero_()
        connection.bias.zero_()  # the uniform mixer, and every stream is written alike
    found = verdicts(model)["distinct_streams"]
    assert (found["verdict"], found["worst"]) == ("warn", NAME)


def test_a_mixer_without_a_gradient() -> None:
    model = trained(ConnectionConfig(mixer="sinkhorn"))
    assert verdicts(model)["dead_mixer"]["verdict"] == "ok"
    with torch.no_grad():
        connection = model.path[FAULTY]
        connection.gate[2] = 0
        connection.bias[8:] = 160 * (torch.eye(4) - 1).flatten()
    found = verdicts(model)["dead_mixer"]
    assert (found["verdict"], found["worst"]) == ("fail", NAME)
    assert found["evidence"]["measure"] == "mixer_gradient_ratio" and found["evidence"]["value"] == 0


def test_a_mixer_that_never_moved() -> None:
    start = Transformer(MODEL, ConnectionConfig(mixer="sinkhorn"), 32)
    model = trained(ConnectionConfig(mixer="sinkhorn"))
    assert verdicts(model, start)["dead_mixer"]["verdict"] == "ok"
    model.path.connections[FAULTY] = copy.deepcopy(start.path[FAULTY])
    found = verdicts(model, start)["dead_mixer"]
    assert (found["verdict"], found["worst"]) == ("fail", NAME)
    assert found["evidence"]["measure"] == "mixer_drift"


def test_what_has_no_logits_cannot_be_dead() -> None:
    model = trained(ConnectionConfig(mixer="identity"))
    assert (
        verdicts(model, Transformer(MODEL, ConnectionConfig(mixer="identity"), 32))["dead_mixer"]["verdict"]
        == "not applicable"
    )


def test_an_outlier() -> None:
    model = Transformer(MODEL, ConnectionConfig(kind="residual", streams=1), 32)
    assert verdicts(model)["outliers"]["verdict"] == "ok"
    wide = Transformer(
        ModelConfig(dim=256, layers=2, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16), ConnectionConfig(), 32
    )
    with torch.no_grad():
        wide.feedforward[1].down.weight[7].mul_(1e3)
    found = verdicts(wide)["outliers"]
    assert (found["verdict"], found["worst"]) == ("warn", NAME)


@pytest.mark.parametrize("option", groups()["connection"])
def test_untrained_paths_of_every_connection_raise_no_failure(option: str) -> None:
    model = Transformer(MODEL, compose([f"connection={option}"]).connection, 32)
    failed = {law: found for law, found in verdicts(model).items() if found["verdict"] == "fail"}
    assert not failed


def test_what_a_rotation_never_promised_is_no_failure() -> None:
    model = trained(ConnectionConfig(mixer="quaternion", init="home", gate_init=1.0), amount=1.0)
    found = verdicts(model)
    for law in ("mass", "time_symmetry", "positivity"):
        assert found[law]["verdict"] == "not promised" and found[law]["evidence"]["value"] is not None
    assert found["energy"]["verdict"] == found["dissipation"]["verdict"] == found["declared"]["verdict"] == "ok"


def test_every_verdict_says_what_it_means_and_what_to_try() -> None:
    for found in verdicts(trained(ConnectionConfig())).values():
        assert found["meaning"] and found["advice"]
    assert len({rule.meaning for rule in RULES}) == len(RULES)


def test_without_observed_streams_only_maps_are_judged() -> None:
    seen = observe(trained(ConnectionConfig()), BLOCKS)
    crossings = [replace(crossing, streams=None, output=None, backward=None) for crossing in seen.crossings]
    found = {law["law"]: law["verdict"] for law in measure(replace(seen, crossings=crossings, last=None))["laws"]}
    assert found["starved_stream"] == found["distinct_streams"] == found["majorisation"] == "not applicable"
    assert found["time_symmetry"] == "ok"


def test_a_sublayer_that_writes_to_one_stream_alone() -> None:
    model = Transformer(MODEL, ConnectionConfig(kind="hc"), 32)
    with torch.no_grad():
        model.path[FAULTY].bias_post.copy_(torch.tensor([4.0, 0, 0, 0]))
    found = verdicts(model)["hub"]
    assert (found["verdict"], found["worst"]) == ("warn", NAME) and found["evidence"]["measure"] == "post_gini"


def test_a_leak_that_no_single_map_shows_adds_up() -> None:
    crossings = [Crossing(torch.ones(1, 4) / 4, torch.ones(1, 4), 0.9905 * torch.eye(4).unsqueeze(0))] * 96
    names = [f"layers.{index // 2}.{('attention', 'feedforward')[index % 2]}" for index in range(96)]
    found = {law["law"]: law for law in measure(Observation(names, crossings, "made by hand"))["laws"]}
    assert found["mass"]["verdict"] == "warn" and found["closure_forward"]["verdict"] == "ok"
    assert found["closure_mass"]["verdict"] == "fail" and found["closure_mass"]["worst"] == names[-1]
    assert found["closure_mass"]["evidence"]["value"] == pytest.approx(-96 * math.log(0.9905), rel=1e-4)


def test_a_gradient_that_has_all_but_vanished_beside_the_others() -> None:
    model = trained(ConnectionConfig(mixer="sinkhorn"))
    with torch.no_grad():
        model.path[FAULTY].gate[2] = 0
        model.path[FAULTY].bias[8:] = 22 * (torch.eye(4) - 1).flatten()
    found = verdicts(model)["dead_mixer"]
    assert (found["verdict"], found["worst"]) == ("warn", NAME) and 0 < found["evidence"]["value"] < 1e-9


def test_a_token_without_a_stream_is_no_fault() -> None:
    model = trained(ConnectionConfig())
    with torch.no_grad():
        model.embedding.weight[BLOCKS[0, 0]] = 0  # a padding token
    found = verdicts(model)
    assert found["finite"]["verdict"] == "ok"
    assert not [law for law, verdict in found.items() if verdict["verdict"] == "fail"]
    silent = trained(ConnectionConfig())
    with torch.no_grad():
        for layer in range(MODEL.layers):
            silent.attention[layer].output.weight.zero_()
            silent.feedforward[layer].down.weight.zero_()
    assert not [law for law, verdict in verdicts(silent).items() if verdict["verdict"] == "fail"]


def test_what_is_not_finite_has_a_verdict_of_its_own() -> None:
    model = trained(ConnectionConfig(mixer="birkhoff"))
    with torch.no_grad():
        model.path[FAULTY].bias[8:] = math.nan
    found = verdicts(model)
    assert (found["finite"]["verdict"], found["finite"]["worst"]) == ("fail", NAME)
    assert (found["declared"]["verdict"], found["declared"]["worst"]) == ("fail", NAME)
    assert found["mass"]["verdict"] == "ok" and "hoards" not in str(found["finite"])


def test_maps_that_are_all_broken_leave_nothing_else_to_judge() -> None:
    model = trained(ConnectionConfig(mixer="sinkhorn"))
    with torch.no_grad():
        for index in range(len(model.path)):
            model.path[index].bias.fill_(math.nan)
    found = verdicts(model)
    assert found["finite"]["verdict"] == "fail" and found["finite"]["worst"] == "layers.0.attention"
    assert found["mass"]["verdict"] == found["convergence"]["verdict"] == "not applicable"


def test_streams_that_carry_nothing_break_no_law() -> None:
    model = trained(ConnectionConfig(mixer="sinkhorn"))
    with torch.no_grad():
        model.embedding.weight.zero_()
    found = verdicts(model)
    assert found["outliers"]["verdict"] == found["starved_stream"]["verdict"] == "not applicable"
    assert not [law for law, verdict in found.items() if verdict["verdict"] == "fail"]


def test_a_composite_that_overflows_is_a_failure() -> None:
    crossings = [Crossing(torch.ones(1, 2) / 2, torch.ones(1, 2), 1e30 * torch.eye(2).unsqueeze(0))] * 12
    found = {law["law"]: law for law in measure(Observation(list("abcdefghijkl"), crossings, "made by hand"))["laws"]}
    assert found["closure_forward"]["verdict"] == "fail" and found["closure_forward"]["evidence"]["value"] is None
    assert found["finite"]["verdict"] == "ok" and found["no_collapse"]["verdict"] != "fail"


def test_promises_name_what_no_token_could_test() -> None:
    found = verdicts(Transformer(MODEL, ConnectionConfig(), 32))["declared"]
    assert found["verdict"] == "ok" and found["evidence"]["not_judged"] == ["dissipation", "mass"]
    assert "dissipation and mass" in found["meaning"]
