"""A comparison in sentences: what was trained, who has the lowest loss, what it cost, what became of the streams."""

from typing import Any

from mhc_train.report.readings import judged, largest
from mhc_train.report.words import FEW, MISSING, Number, counted, has, law_name, listed, loss, named, number, signed

COLLAPSED, QUIET = 0.1, 1.1
"""A composite that keeps less than a tenth of differences while its gain is at most 1.1 looks better than it is."""
COPIES = 1e-3
"""Share of the energy in differences between streams below which they are called copies."""


def summary(document: dict[str, Any]) -> list[str]:
    """What was trained, who has the lowest loss and how far to trust that, and what it cost, sentence by sentence."""
    return [_scope(document), *_loss(document), *_cost(document)]


def _scope(document: dict[str, Any]) -> str:
    arms, seeds = document["arms"], document["seeds"]
    names = named([arm["name"] for arm in arms])
    tokens = sorted({arm["tokens"] for arm in arms if arm["tokens"] is not None})
    amount = f" on {listed(list(map(counted, tokens)))} tokens" if tokens else ""
    each = " each" if len(arms) > 1 and len(tokens) == 1 else ""
    many = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"{names} {'was' if len(arms) == 1 else 'were'} trained{amount}{each}, with {many}."


def _loss(document: dict[str, Any]) -> list[str]:
    arms = document["arms"]
    without = [arm["name"] for arm in arms if arm["val_loss"] is None]
    missing = [f"{listed(without)} {has(without)} no final validation loss ({MISSING})."] if without else []
    ranked = sorted((arm for arm in arms if arm["val_loss"] is not None), key=lambda arm: arm["val_loss"])
    if len(arms) == 1:
        return missing or [f"Its validation loss is {loss(arms[0]['val_loss'])} nats per token."]
    if not document["comparable"]:
        return [
            *missing,
            f"The runs are not comparable ({'; '.join(document['reasons'])}), so their losses are not ranked.",
        ]
    if len(ranked) < 2:
        return missing
    best, other = ranked[0], ranked[1] if ranked[0] is arms[0] else next(arm for arm in arms if arm in ranked)
    gap = other["val_loss"] - best["val_loss"]
    lead = f"The lowest validation loss is that of {best['name']}, {loss(best['val_loss'])} nats per token, "
    lead += f"{gap:.4f} below that of {other['name']} ({loss(other['val_loss'])})."
    rivals = [other] if other is ranked[1] else [other, ranked[1]]
    return [*missing, lead, *_certainty(document, best["name"], [rival["name"] for rival in rivals])]


def _certainty(document: dict[str, Any], best: str, rivals: list[str]) -> list[str]:
    """How far the lead may be trusted: against the first arm, and against the runner-up where that is another."""
    rows = [row for rival in rivals for row in document["differences"] if {row["a"], row["b"]} == {best, rival}]
    if all(len(row["seeds"]) < 2 for row in rows):
        return ["One seed settles nothing: another seed could reverse the order."]
    return [_shown(row, best) for row in rows]


def _shown(row: dict[str, Any], best: str) -> str:
    rival = row["a"] if row["b"] == best else row["b"]
    if row["interval"] is None:
        return f"Against {rival}: {row['verdict']}."
    low, high = row["interval"] if row["b"] == best else (-row["interval"][1], -row["interval"][0])
    interval = f"the 95 % interval over {len(row['seeds'])} seeds, {signed(low)} to {signed(high)},"
    if row["verdict"] == "no difference shown":
        return f"Against {rival} no difference is shown: {interval} holds zero."
    return f"Against {rival} {interval} leaves zero out."


def _cost(document: dict[str, Any]) -> list[str]:
    first, *others = document["arms"]
    timed = sorted((arm for arm in others if arm["relative_step_time"] is not None), key=_step_time)
    if not timed:
        return []
    shown = timed if len(timed) < FEW else [timed[0], timed[-1]]
    times = listed([f"{_step_time(arm):.2f} times as long in {arm['name']}" for arm in shown])
    between = "" if shown is timed else "between "
    same = any(row["name"] == "hardware" and row["state"] == "same" for row in document["requirements"])
    caveat = "timed in separate runs" if same else "but the hardware or its settings were not the same"
    return [f"Compared with {first['name']}, a training step took {between}{times} ({caveat})."]


def _step_time(arm: dict[str, Any]) -> float:
    return float(arm["relative_step_time"])


def path_summary(arms: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every arm's name and a few sentences on its residual path: gains, broken laws, what has become of the streams."""
    return [(arm["name"], path(arm["measurements"][-1] if arm["measurements"] else None)) for arm in arms]


def path(measurement: dict[str, Any] | None) -> str:
    """One residual path in a few sentences, the first of which goes on from its name."""
    if measurement is None:
        return "the residual path was not measured."
    if measurement["streams"] == 1:
        return "a single stream, which nothing mixes; the gain is 1 by construction."
    composite = measurement["composite"]
    forward, backward = (largest(composite[way], f"{way}_gain") for way in ("forward", "backward"))
    gains = f"the composite gain is {number(forward)} forwards and {number(backward)} backwards at the worst token"
    return " ".join([f"{gains}; it {_broken(measurement['laws'])}.", *_streams(measurement, forward)])


def _streams(measurement: dict[str, Any], gain: Number) -> list[str]:
    """What gains do not show: whether differences between streams survive, and whether there are any."""
    kept = measurement["composite"]["forward"][-1]["difference_gain"]["median"]
    share = measurement["sublayers"][-1].get("stream_difference", {}).get("median")
    sentences = []
    if kept is not None:
        text = (
            f"A difference between streams leaves the last sublayer multiplied by at most {number(kept)} (median token)"
        )
        hidden = gain is not None and gain <= QUIET and kept < COLLAPSED
        sentences.append(text + (": the streams collapse, which a gain near 1 does not show." if hidden else "."))
    if share is not None and share < COPIES:
        text = f"The streams are nearly copies of each other ({number(100 * share, 2)} % of their energy lies in"
        sentences.append(f"{text} differences), so that a mixer has little to work on.")
    return sentences


def _broken(rows: list[dict[str, Any]]) -> str:
    laws = judged(rows)
    failed = [law_name(row["law"]) for row in laws if row["verdict"] == "fail"]
    warned = [law_name(row["law"]) for row in laws if row["verdict"] == "warn"]
    text = (
        f"fails {len(failed)} of {len(laws)} laws ({listed(failed)})" if failed else f"fails none of {len(laws)} laws"
    )
    return text + (f" and has a warning for {listed(warned)}" if warned else "")
