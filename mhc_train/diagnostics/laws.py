"""Verdicts: each law of the residual path held against its measurement, with the worst sublayer as evidence.

A verdict is ok, warn or fail; `not applicable` where what it needs was not observed or has no meaning; and
`not promised` where the mixer's constraint replaces the law by another. Limits and advice: docs/measurements.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mhc_train.diagnostics.promises import SLACK
from mhc_train.files import finite
from mhc_train.mixers import Guarantee, Law

Entry = dict[str, Any]
NEVER = math.inf


@dataclass(frozen=True)
class Rule:
    """A law, the number that tests it, and the limits between ok, warn and fail."""

    law: str
    where: str
    """sublayers | forward | backward | whole (the composite over all sublayers)."""
    measure: str
    statistic: str
    ok: float
    warn: float
    """The limit of failing; infinite for what is graded and is no fault by itself."""
    meaning: str
    advice: str
    """What a warning or failure means, and what to try."""
    truncated: float | None = None
    """The limit of failing, where another is fair: a truncated iteration declares the law for small logits alone, and
    beyond them errs by a few percent. What that adds up to, the closures judge."""
    below: bool = False
    """Whether small values are the bad ones."""
    needs: frozenset[Law] = frozenset()
    """Laws without which this one cannot hold: where the mixer renounces one, this is not promised."""
    if_declared: bool = False
    """Whether it is judged only where the mixer declares it: few mean to obey it."""
    counts: Callable[[Entry], bool] = lambda entry: True
    """Which entries it is a fault of."""

    @property
    def graded(self) -> bool:
        """Whether it never fails."""
        return self.warn == (0.0 if self.below else NEVER)


def _mixing_matters(entry: Entry) -> bool:
    """Whether a sublayer's mixer can do anything.

    Copies of one stream stay what they are whatever mixes them, if rows sum to 1 (as before the first sublayer); and
    the loss does not see what only redistributes the total, if columns do and the streams are read out by their mean
    (as after the last).
    """
    shares = (entry.get(key, {}).get("max") for key in ("difference_before", "gradient_difference"))
    return all(share is None or share > COPIES for share in shares)


COPIES = 1e-10
"""Share of the energy in differences at or below which streams are copies, to float32 rounding."""

STOCHASTIC = frozenset({Law.MASS, Law.TIME_SYMMETRY, Law.POSITIVITY})

# The largest token counts, not the mean: averages hide the token on which a network blows up.
RULES = (
    Rule("finite", "sublayers", "not_finite", "max", 0.0, 0.0,
         "all that was observed is finite",
         "this is the first sublayer with a number that is not finite: look at its weights and its input"),
    Rule("finite", "sublayers", "gradient_not_finite", "max", 0.0, 0.0,
         "all gradients are finite",
         "the signal is finite and a gradient is not: look at what comes after this sublayer, and at the loss"),
    Rule("mass", "sublayers", "column_error", "max", 1e-3, 1e-2,
         "columns of H_res sum to 1: what the streams hold in total is neither lost nor made",
         "the mixer leaks or pumps: a free one wants a constraint (mhc), a Sinkhorn more rounds (connection.iterations "
         "here, hc_sinkhorn_iters elsewhere) or an exact parametrisation (mhc_lite, mhc_newton)",
         truncated=0.1, needs=frozenset({Law.MASS})),
    Rule("time_symmetry", "sublayers", "row_error", "max", 1e-3, 1e-2,
         "rows of H_res sum to 1: gradients keep their total on the way back",
         "gradients are scaled at this sublayer: a free mixer wants a constraint, a Sinkhorn more rounds or an exact "
         "parametrisation",
         truncated=0.1, needs=frozenset({Law.TIME_SYMMETRY})),
    Rule("dissipation", "sublayers", "spectral_norm", "max", 1.001, 1.02,
         "mixing creates no energy: sigma_max(H_res) is at most 1",
         "this mixer can amplify: whether it adds up over the depth, closure_forward and closure_backward tell; a "
         "constraint, or a Sinkhorn that converges, bounds it", truncated=1.05),
    Rule("energy", "sublayers", "smallest_singular_value", "min", 0.999, 0.98,
         "mixing loses no energy: sigma_min(H_res) is at least 1",
         "the mixer is not the rotation that it declares: look for a change of precision or parametrisation",
         below=True, if_declared=True),
    Rule("positivity", "sublayers", "smallest_entry", "min", -1e-6, -1e-3,
         "no entry of H_res is negative: no flow runs backwards",
         "streams are subtracted from one another, so that sums may hold while entries grow: constrain the mixer",
         below=True, needs=frozenset({Law.POSITIVITY})),
    Rule("majorisation", "sublayers", "majorisation_excess", "max", 1e-3, 1e-2,
         "mixing only spreads: no channel of H X is more extreme than in X",
         "a channel is made more extreme than it was: the map is not doubly stochastic on these streams",
         truncated=0.1, needs=STOCHASTIC),
    Rule("no_packet_left_behind", "sublayers", "least_sent", "min", 0.1, 0.01,
         "every stream goes somewhere: no column of H_res sums to nearly 0",
         "a stream's content is thrown away at this sublayer", below=True, needs=frozenset({Law.MASS})),
    Rule("hub", "sublayers", "received_gini", "p99", 0.25, 0.75,
         "no stream hoards: the rows of H_res receive alike (Gini coefficient, 1 where one takes all)",
         "one stream receives what the others lose: the streams are on their way to being a single one",
         needs=frozenset({Law.TIME_SYMMETRY})),
    Rule("hub", "sublayers", "post_gini", "p99", 0.75, NEVER,
         "no stream hoards: sublayers write to all (Gini coefficient of H_post, 1 where one takes all)",
         "this sublayer writes to a single stream: fewer streams might do the same"),
    Rule("closure_forward", "forward", "forward_gain", "max", 2.0, 10.0,
         "composites do not amplify the signal: Amax gain of H_l ... H_1",
         "small gains multiply over the depth: see which sublayers have row sums above 1, and constrain the mixer"),
    Rule("closure_backward", "backward", "backward_gain", "max", 2.0, 10.0,
         "composites do not amplify gradients: Amax gain of H_L ... H_l",
         "early layers get gradients that the depth has amplified: constrain the mixer, or clip and watch their norm"),
    Rule("closure_mass", "forward", "log_mass", "max", 0.2, 0.7,
         "composites neither lose nor make what the streams hold: largest |log| of a column sum of H_l ... H_1",
         "small leaks add up over the depth (0.7 is half, or twice): see which sublayers have column sums off 1",
         needs=frozenset({Law.MASS})),
    Rule("no_collapse", "whole", "difference_gain", "median", 1e-2, 0.0,
         "the depth keeps differences between streams (graded: every deep product of doubly stochastic maps contracts)",
         "what distinguishes streams at the start does not reach the end by mixing alone: fewer mixing sublayers "
         "(connection.where), a weaker leak (c_mhc) or a rotation (ohc) keep more", below=True),
    Rule("distinct_streams", "sublayers", "stream_difference", "median", 1e-3, 0.0,
         "streams are not copies of one another (share of energy in their differences)",
         "several streams cost what they cost and carry one: break the symmetry by connection.init=home, "
         "connection.expand=scaled or larger gates (connection.gate_init)", below=True),
    Rule("starved_stream", "sublayers", "least_energy_share", "min", 1e-2, 1e-4,
         "every stream carries something: the weakest one's energy over the mean",
         "a stream is empty after this sublayer: it is written to by none, or its content was sent away; fewer streams "
         "would do the same", below=True),
    Rule("outliers", "sublayers", "outlier", "max", 10.0, NEVER,
         "no channel of a sublayer's output towers over the others: largest magnitude over root mean square",
         "a few channels carry most of what is written: expect trouble with low precision; look at the token and its "
         "sublayer's norm"),
    Rule("dead_mixer", "sublayers", "mixer_drift", "max", 1e-7, 1e-15,
         "the mixer has moved from its start",
         "this H_res is what it was before training, so that mixing has learnt nothing: look for a saturated start "
         "(connection.init), a learning rate of 0, or frozen parameters", below=True, counts=_mixing_matters),
    Rule("dead_mixer", "sublayers", "mixer_gradient_ratio", "max", 1e-9, 1e-15,
         "the loss's gradient reaches the mixer's logits (over that at the sublayer's output)",
         "the mixer's logits get no gradient: they are saturated, or the mixer is detached from the loss", below=True,
         counts=_mixing_matters),
)  # fmt: skip
BETWEEN_STREAMS = frozenset({"distinct_streams", "no_collapse", "starved_stream", "hub"})
"""Laws that have no meaning for one stream."""


def judge(
    document: dict[str, Any], guarantees: tuple[Guarantee, ...] = (), renounced: frozenset[Law] = frozenset()
) -> list[dict[str, Any]]:
    """A verdict for every law, of a measurement document; of several rules for one law, the worst.

    Collapse is graded and never fails: every deep product of doubly stochastic maps contracts.
    """
    declared = {guarantee.law: guarantee for guarantee in guarantees}
    verdicts: dict[str, dict[str, Any]] = {}
    for rule in RULES:
        if rule.if_declared and rule.law not in declared:
            continue
        verdict = _verdict(rule, document, declared, renounced)
        if rule.law not in verdicts or _rank(verdict) > _rank(verdicts[rule.law]):
            verdicts[rule.law] = verdict
    return [*verdicts.values(), _convergence(document, guarantees), _promises(document)]


def _rank(verdict: dict[str, Any]) -> int:
    return ("not applicable", "not promised", "ok", "warn", "fail").index(verdict["verdict"])


def _verdict(
    rule: Rule, document: dict[str, Any], declared: dict[Law, Guarantee], renounced: frozenset[Law]
) -> dict[str, Any]:
    verdict: dict[str, Any] = _words(rule.law, rule.meaning, rule.advice, _promise(rule, declared))
    entries = [entry for entry in _entries(document, rule) if rule.measure in entry and rule.counts(entry)]
    # What is not finite has a verdict of its own, and else a sublayer lacks a number only where no token has one; but
    # of finite maps, composites that are not finite have outgrown float64.
    if rule.where == "sublayers" or _broken(document):
        entries = [entry for entry in entries if entry[rule.measure][rule.statistic] is not None]
    if not entries or (rule.law in BETWEEN_STREAMS and document["streams"] == 1):
        return verdict
    worst, value = _worst(entries, rule)
    limit = _limit(rule, declared)
    evidence = {
        "measure": rule.measure,
        "statistic": rule.statistic,
        "value": value,
        "ok": rule.ok,
        "warn": finite(limit),
        "below": rule.below,
    }
    grade = _grade(value, rule, limit)
    if grade != "ok" and rule.needs & renounced:
        grade = "not promised"
    return verdict | {"verdict": grade, "worst": worst["name"], "evidence": evidence}


def _broken(document: dict[str, Any]) -> bool:
    """Whether anything that was observed is not finite."""
    keys = ("not_finite", "gradient_not_finite")
    return any(entry[key]["max"] for entry in document["sublayers"] for key in keys if key in entry)


def _words(law: str, meaning: str, advice: str, declared: dict[str, Any] | None = None) -> dict[str, Any]:
    """A verdict before anything was found."""
    return {
        "law": law,
        "verdict": "not applicable",
        "worst": None,
        "evidence": None,
        "declared": declared,
        "meaning": meaning,
        "advice": advice,
    }


def _entries(document: dict[str, Any], rule: Rule) -> list[Entry]:
    if rule.where == "sublayers":
        return list(document["sublayers"])
    if rule.where == "whole":
        return [document["composite"]["forward"][-1]]
    return list(document["composite"][rule.where])


def _worst(entries: list[Entry], rule: Rule) -> tuple[Entry, float | None]:
    """The first of the worst entries, and its number; one that is not finite is worse than any."""

    def badness(entry: Entry) -> float:
        value = entry[rule.measure][rule.statistic]
        return math.inf if value is None else -value if rule.below else value

    worst = max(entries, key=badness)
    return worst, worst[rule.measure][rule.statistic]


def _limit(rule: Rule, declared: dict[Law, Guarantee]) -> float:
    """Beyond which the rule fails, given what the mixer declares of its law, or of those that it needs."""
    bounded = [law for law, guarantee in declared.items() if math.isfinite(guarantee.logit_range)]
    if rule.truncated is not None and (rule.law in bounded or rule.needs & set(bounded)):
        return rule.truncated
    return rule.warn


def _grade(value: float | None, rule: Rule, limit: float) -> str:
    if value is None:
        return "warn" if rule.graded else "fail"
    sign = -1 if rule.below else 1
    if sign * value <= sign * rule.ok:
        return "ok"
    return "warn" if sign * value <= sign * limit else "fail"


def _convergence(document: dict[str, Any], guarantees: tuple[Guarantee, ...]) -> dict[str, Any]:
    """Whether an iteration has arrived where it is declared to for small logits, with the logits that explain it."""
    verdict = _words(
        "convergence",
        "the mixer's iteration has converged on the side that it normalises first",
        "the logits spread too far for this many rounds: raise connection.iterations, lower the learning rate of the "
        "gates, or take an exact mixer (mhc_newton, mhc_lite)",
    )
    sides = (Law.MASS, Law.TIME_SYMMETRY)
    inexact = [g for g in guarantees if g.law in sides and math.isfinite(g.logit_range)]
    if not inexact:
        return verdict
    rule = next(rule for rule in RULES if rule.law == inexact[0].law)
    found = _verdict(rule, document, {inexact[0].law: inexact[0]}, frozenset())
    if found["worst"] is None:
        return verdict
    entry = next(entry for entry in document["sublayers"] if entry["name"] == found["worst"])
    spread = entry.get("logit_range", {}).get("max")
    return verdict | {
        "verdict": found["verdict"],
        "worst": found["worst"],
        "evidence": found["evidence"] | {"logit_range": spread},
        "declared": found["declared"],
    }


def _promises(document: dict[str, Any]) -> dict[str, Any]:
    """Whether every mixer keeps what it declares, for the logits for which it does."""
    verdict = _words(
        "declared",
        "every mixer keeps what it declares, on all tokens for which it does",
        "these are not the maps of this parametrisation: read with the wrong orientation or order of normalisation, "
        "other rounds than declared, or too low a precision",
    )
    judged = [
        (entry["name"], promise)
        for entry in document["sublayers"]
        for promise in entry["promises"]
        if promise["kept"] is not None
    ]
    if not judged:
        return verdict
    name, promise = max(judged, key=lambda pair: _excess(pair[1]))
    judged_laws = {each["law"] for _, each in judged}
    idle = sorted({each["law"] for entry in document["sublayers"] for each in entry["promises"]} - judged_laws)
    evidence = {
        "measure": f"error of {promise['law']}",
        "statistic": "max",
        "value": promise["error"],
        "ok": promise["tolerance"],
        "warn": promise["tolerance"],
        "below": False,
        "not_judged": idle,
    }
    if idle:
        verdict["meaning"] += f"; no token's logits lie where it declares {' and '.join(idle).replace('_', ' ')}"
    return verdict | {"verdict": "ok" if promise["kept"] else "fail", "worst": name, "evidence": evidence}


def _excess(promise: dict[str, Any]) -> tuple[bool, float]:
    """Broken first; then by the error over its tolerance."""
    error = promise["error"]
    return not promise["kept"], math.inf if error is None else error / max(promise["tolerance"], SLACK)


def _promise(rule: Rule, declared: dict[Law, Guarantee]) -> dict[str, float | None] | None:
    """What the mixer promises; a logit range of null means any logits, since JSON knows no infinity."""
    guarantee = next((each for law, each in declared.items() if law.value == rule.law), None)
    if guarantee is None:
        return None
    return {"tolerance": guarantee.tolerance, "logit_range": finite(guarantee.logit_range)}
