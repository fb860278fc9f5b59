"""Composition: groups, experiments, a user's own directory, hints, and what travels through a file."""

import dataclasses
import json
from pathlib import Path

import pytest

from mhc_train.config.compose import amend, compose, from_dict, groups, to_yaml
from mhc_train.config.validate import CHOICES, NOT_NEGATIVE, POSITIVE, validate, value_of
from mhc_train.errors import ConfigError
from mhc_train.experiments.arms import plan_arms, with_default_arms
from mhc_train.schema import Config, ConnectionConfig, key_names

OPTIONS = [(group, option) for group, options in groups().items() for option in options]


NEEDED = dict.fromkeys(("parquet", "json", "text"), ["data.path=x"]) | {
    "mixture": ["data.mixture.a={weight: 1, source: json, path: x}"]
}
"""What an option leaves to its user."""


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    config = compose([f"{group}={option}", *NEEDED.get(option, [])])
    assert not validate(config)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert to_yaml(config)


def test_defaults_of_yaml_and_schema_agree() -> None:
    assert dataclasses.replace(compose(), name="run") == Config(connection=ConnectionConfig(label="mhc"))


def test_rules_name_existing_keys() -> None:
    for key in (*CHOICES, *POSITIVE, *NOT_NEGATIVE):
        assert key in key_names()
        value_of(Config(), key)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("lr=1", "optim.lr"),
        ("train.lrr=1", "optim.lr"),
        ("conection=hc", "connection"),
        ("+train.step=1", "train.steps"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(override: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"no such key. Did you mean {hint}"):
        compose([override])


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["connection=mhc_lite", "connection.streams=8"], "at most 6 streams, not 8; take connection.streams=4"),
        (["connection=ohc", "connection.streams=2"], "take connection.streams=4"),
        (["connection=ohc", "connection.init=uniform"], "no start 'uniform'; take connection.init=equivalent or home"),
        (["connection=krom_hc", "connection.streams=7"], "take connection.streams=4 or 8"),
        (["connection=go_mhc", "connection.block=3"], "take connection.block=2"),
        (["connection=c_mhc", "connection.beta=99"], "take connection.beta from 0 to 8"),
        (["connection=mhc", "connection.options.foo=1"], "has no option foo of its own; it has none"),
        (["connection=hc", "connection.single_pass=true"], "connection=mhc_single_pass"),
        (["connection=mhc", "connection.read_out=last_pre"], "connection.single_pass=true"),
        (["connection=residual", "connection.expand=scaled"], "connection.expand=copy"),
        (["connection.first_layer=4"], "connection.first_layer=0"),
        (["connection.last_layer=9"], "connection.last_layer=3"),
        (["connection.mixer=sinkhorm"], "must be one of birkhoff, circulant.* Type connection.mixer=sinkhorn"),
        (["connection.mixer=krom_hc"], "Type connection.mixer=kronecker"),
        (["connection=hc", "connection.mixer=newton"], "hc mixes freely.*connection=mhc connection.mixer=newton"),
        (["connection=ohc", "connection.streams=3", "connection.last_layer=9"], "(?s)layers 0 to 9.*exactly 4 streams"),
        (["connection.kind=mch"], "Type connection.kind=mhc"),
        (["connection.options.order=rows_first"], "no option order of its own"),
        (["connection=hc", "connection.options.foo=1"], "are for mixers of mhc"),
        (["connection=mhc_single_pass", "connection.where=attention"], "connection.where=all"),
        (["connection.final_write_multiplier=-1"], "must be 0 or more"),
    ],
)
def test_what_a_connection_cannot_be_is_said_with_what_it_can(overrides: list[str], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        compose(overrides)


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "all", "\u0664", "null"])
def test_what_recompute_cannot_be_is_said_with_what_it_can(value: str) -> None:
    with pytest.raises(ConfigError, match="train.recompute"):
        compose([f"train.recompute={value}"])


def test_recompute_is_a_word_or_a_number_and_may_change_on_resume() -> None:
    for value in ("none", "streams", "auto", "3"):
        assert compose([f"train.recompute={value}"]).train.recompute == value
        assert amend(compose(), [f"train.recompute={value}"]).train.recompute == value


def test_an_experiment_and_a_directory_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("dim: 96\nheads: 3\nkv_heads: 3\n")
    config = compose(["experiment=quickstart", "model=mine", "train.steps=7"], config_dir=tmp_path)
    assert (config.model.dim, config.data.seq_len, config.train.steps) == (96, 128, 7)
    assert config.name == "quickstart-mhc"
    with pytest.raises(ConfigError, match="no such directory"):
        compose([], config_dir=tmp_path / "none")


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match="data.path has no value"):
        compose(["data=text"])


def test_one_stream_too_many_for_the_residual() -> None:
    with pytest.raises(ConfigError, match="exactly one stream"):
        compose(["connection=residual", "connection.streams=4"])


def test_arms_without_a_sweep() -> None:
    assert with_default_arms(["seed=1,2"]) == ["seed=1,2", "connection=residual,hc,mhc"]
    assert with_default_arms(["connection=mhc"]) == ["connection=residual,mhc"]
    assert with_default_arms(["connection.streams=2,4"]) == ["connection.streams=2,4"]
    planned = plan_arms(["connection=residual,mhc", "seed=range(1,4)"], "config", None)
    assert planned == {
        (f"connection={kind}",): [[f"connection={kind}", f"seed={seed}"] for seed in (1, 2, 3)]
        for kind in ("residual", "mhc")
    }
    with pytest.raises(ConfigError, match="nothing to compare"):
        with_default_arms(["connection=residual"])
