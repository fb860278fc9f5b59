"""`--fail-on` for comparisons: what holds for a document that is written out here, and what is refused, with advice."""

from typing import Any

import pytest

from mhc_train.errors import ConfigError
from mhc_train.report.condition import parse_comparison


def arm(name: str, gains: tuple[float | None, ...] = (1.0,), **numbers: Any) -> dict[str, Any]:
    """`gains` are a seed's each, at its last measurement."""
    early = {"forward_gain": 100.0, "backward_gain": 100.0}
    courses = [{"points": [early, {"forward_gain": gain, "backward_gain": 1.0}]} for gain in gains]
    return {"name": name, "courses": [*courses, {"points": []}], "laws": [], "failed": []} | numbers


def law(name: str, verdict: str) -> dict[str, Any]:
    return {"law": name, "verdict": verdict, "worst": "layers.0.attention"}


def difference(a: str, b: str, verdict: str, mean: float | None = 0.25) -> dict[str, Any]:
    return {"a": a, "b": b, "metric": "val_loss", "verdict": verdict, "mean": mean}


DOCUMENT: dict[str, Any] = {
    "concurrent": 1,
    "reasons": ["the tokens differ"],
    "arms": [
        arm("residual", val_loss=6.0, peak_memory=100, laws=[law("mass", "ok"), law("hub", "warn")]),
        arm("hc", (2.0, 12.5, 3.0), val_loss=5.75, peak_memory=126, laws=[law("mass", "fail"), law("hub", "ok")]),
        arm("mhc lr=0.001", (1.0, None), val_loss=None, failed=[{"seed": 1}], laws=[law("mass", "not promised")]),
        arm("mhc lr=0.001 streams=2", (), val_loss=6.25),
    ],
    "differences": [
        difference("residual", "hc", "lower", -0.25),
        difference("residual", "mhc lr=0.001", "no common seed", None),
        difference("residual", "mhc lr=0.001 streams=2", "higher"),
        difference("hc", "mhc lr=0.001 streams=2", "no difference shown"),
    ],
}


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("hc.val_loss > residual.val_loss", []),
        ("hc.val_loss < residual.val_loss", ["5.75 < 6"]),
        ("residual.val_loss>=6", ["6 >= 6"]),
        ("residual.val_loss > 6", []),
        ("hc.peak_memory > 1.25*residual.peak_memory", ["126 > 125"]),
        ("hc.peak_memory > 1.3 * residual.peak_memory", []),
        ("2*hc.peak_memory > 2.5e0*residual.peak_memory", ["252 > 250"]),
        ("hc.forward_gain > 10", ["12.5 > 10"]),
        ("hc.backward_gain > 1", []),
        ("mhc lr=0.001.failed > 0", ["1 > 0"]),
        ("hc.failed > 0", []),
        ("mhc lr=0.001 streams=2.val_loss > residual.val_loss", ["6.25 > 6"]),
        # What there is not, is beyond every limit, in either direction.
        ("mhc lr=0.001.val_loss > 100", ["mhc lr=0.001.val_loss not known"]),
        ("mhc lr=0.001.val_loss < 0", ["mhc lr=0.001.val_loss not known"]),
        ("residual.val_loss > mhc lr=0.001.val_loss", ["mhc lr=0.001.val_loss not known"]),
        ("mhc lr=0.001.forward_gain > 100", ["not known"]),
        ("mhc lr=0.001 streams=2.forward_gain > 100", ["not known"]),
        ("hc.train_loss > 100", ["not known"]),
        ("shown: residual.val_loss > hc.val_loss", ["hc is lower than residual, by 0.25"]),
        ("shown:hc.val_loss < residual.val_loss", ["hc is lower than residual, by 0.25"]),
        ("shown: hc.val_loss > residual.val_loss", []),
        ("shown: residual.val_loss < hc.val_loss", []),
        ("shown: mhc lr=0.001 streams=2.val_loss > residual.val_loss", ["streams=2 is higher than residual"]),
        ("shown: mhc lr=0.001 streams=2.val_loss > hc.val_loss", []),
        ("shown: mhc lr=0.001.val_loss > residual.val_loss", []),
        ("shown: residual.val_loss > mhc lr=0.001.val_loss", []),
        ("fail", ["hc: mass: fail at layers.0.attention", "no law of mhc lr=0.001 streams=2 was judged"]),
        ("hc.warn", ["hc: mass: fail"]),
        ("residual.warn", ["residual: hub: warn"]),
        ("residual.fail", []),
        ("residual.warn:mass", []),
        ("hc.fail:mass", ["hc: mass: fail"]),
        ("mhc lr=0.001.fail:mass", []),
        ("not comparable", ["not comparable: the tokens differ"]),
        ("not-comparable", ["not comparable: the tokens differ"]),
    ],
)
def test_a_condition_holds_or_not(condition: str, found: list[str]) -> None:
    violations = parse_comparison(condition).violations(DOCUMENT)
    assert len(violations) == len(found)
    assert all(words in text for words, text in zip(found, violations, strict=True))


@pytest.mark.parametrize(
    ("condition", "advice"),
    [
        ("mhc.val_los > 3", "did you mean val_loss?"),
        ("mhc.val_loss > hc.peak_memroy", "did you mean peak_memory?"),
        ("val_loss > 3", "not a condition"),
        ("mhc.val_loss", "not a condition"),
        ("mhc.val_loss >> hc.val_loss", "not a condition"),
        ("mhc.val_loss == 3", "not a condition"),
        ("mhc.val_loss > nan", "not a condition"),
        ("mhc.val_loss > inf", "not a condition"),
        ("mhc.val_loss > 1..2*hc.val_loss", "not a condition"),
        ("3 < mhc.val_loss", "not a condition"),
        ("", "not a condition"),
        ("shown: mhc.val_loss > 3", "seeds can show"),
        ("shown: mhc.val_loss >= hc.val_loss", "seeds can show"),
        ("shown: mhc.val_loss > 2*hc.val_loss", "seeds can show"),
        ("shown: mhc.val_loss > mhc.val_loss", "seeds can show"),
        ("shown: mhc.peak_memory > hc.peak_memory", "seeds can show"),
        ("shown: mhc.val_loss > hc.train_loss", "seeds can show"),
    ],
)
def test_what_is_no_condition_is_refused_before_anything_is_trained(condition: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"--fail-on .*{advice}"):
        parse_comparison(condition)


@pytest.mark.parametrize(
    ("condition", "advice"),
    [
        ("mhc.val_loss > 3", "there is no mhc; .*residual, hc, mhc lr=0.001, mhc lr=0.001 streams=2"),
        ("hc.val_loss > residul.val_loss", "did you mean residual?"),
        ("shown: hc.val_loss > residul.val_loss", "did you mean residual?"),
        ("residul.fail", "did you mean residual?"),
        ("fail:mas", "did you mean mass?"),
    ],
)
def test_names_are_looked_up_in_the_comparison(condition: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        parse_comparison(condition).violations(DOCUMENT)


def test_speeds_are_none_where_runs_shared_the_machine() -> None:
    arms = [arm("residual", relative_step_time=1.0, params=5), arm("hc", relative_step_time=1.2, params=6)]
    condition = parse_comparison("hc.relative_step_time > 2*residual.relative_step_time")
    assert condition.violations(DOCUMENT | {"arms": arms}) == []
    (found,) = condition.violations(DOCUMENT | {"arms": arms, "concurrent": 2})
    assert "not known" in found and "shared the machine" in found
    assert parse_comparison("hc.params > 7").violations(DOCUMENT | {"arms": arms, "concurrent": 2}) == []
