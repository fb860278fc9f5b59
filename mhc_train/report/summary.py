"""A comparison in sentences: what was trained, who has the lowest loss, what it cost, what became of the streams."""

from typing import Any

from mhc_train.report.readings import Document, judged, largest, prominent
from mhc_train.report.words import (
    FEW,
    MISSING,
    Number,
    chance,
    counted,
    has,
    law_name,
    listed,
    loss,
    many,
    named,
    number,
    percent,
    signed,
)

COLLAPSED, QUIET = 0.1, 1.1
"""A composite that keeps less than a tenth of differences while its gain is at most 1.1 looks better than it is."""
SETTLED = ("lower", "higher", "no difference shown")
"""Verdicts that the seeds speak."""
COPIES = 1e-3
"""Share of the energy in differences between streams below which they are called copies."""


def summary(document: Document) -> list[str]:
    """What was trained, what went missing, who has the lowest loss and how far to trust that, and what it cost."""
    return [_scope(document), *_missing(document), *_tuning(document), *_loss(document), *_cost(document)]


def _scope(document: Document) -> str:
    arms, seeds = document["arms"], document["seeds"]
    names = named([arm["name"] for arm in arms])
    tokens = sorted({arm["tokens"] for arm in arms if arm["tokens"] is not None})
    amount = f" on {listed(list(map(counted, tokens)))} tokens" if tokens else ""
    each = " each" if len(arms) > 1 and len(tokens) == 1 else ""
    text = f"{names} {'was' if len(arms) == 1 else 'were'} trained{amount}{each}, with {_seeds(len(seeds))}"
    reference = f"; the reference is {document['reference']}" if len(arms) > 1 else ""
    return f"{text}{reference}."


def _seeds(amount: int) -> str:
    return "one seed" if amount == 1 else f"{amount} seeds"


def _missing(document: Document) -> list[str]:
    """Runs that failed or left nothing: whoever is not told of them takes the others for all."""
    failed = [f"{arm['name']} with seed {run['seed']}" for arm in document["arms"] for run in arm["failed"]]
    sentences = []
    if failed:
        listed_ = f" ({listed(failed)})" if len(failed) <= FEW else ""
        sentences.append(f"{many(len(failed), 'run')} did not finish{listed_}; no mean has a number of such a run.")
    if document["lost"]:
        sentences.append(f"{many(len(document['lost']), 'planned run')} left nothing to compare.")
    return sentences


def _tuning(document: Document) -> list[str]:
    """Whether every arm had its chance, and how good a chance."""
    if len(document["arms"]) == 1:
        return []
    if not document["tuning"]:
        return ["No tuning is on record: a setting that suits one arm may not suit another."]
    keys = listed(sorted({row["key"] for row in document["tuning"]}))
    edges = [" ".join(row["arm"]) or "the defaults" for row in document["tuning"] if row["edge"]]
    text = f"{keys} was tuned for each arm"
    if edges:
        return [
            f"{text}; for {named(edges)} the chosen value is at the edge of what was tried: a better may lie beyond."
        ]
    return [f"{text}, and no chosen value is at the edge of what was tried."]


def _loss(document: Document) -> list[str]:
    arms = document["arms"]
    without = [arm["name"] for arm in arms if arm["val_loss"] is None]
    missing = [f"{named(without)} {has(without)} no final validation loss ({MISSING})."] if without else []
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
    best = ranked[0]
    kind = "mean validation loss" if len(document["seeds"]) > 1 else "validation loss"
    lead = f"The lowest {kind} is that of {best['name']}, {loss(best['val_loss'])} nats per token"
    return [
        *missing,
        f"{lead}{_margin(best, ranked[1], document['reference'], arms)}.",
        *_certainty(document, best["name"]),
    ]


def _margin(best: Document, second: Document, reference: str, arms: list[Document]) -> str:
    """How far the lowest loss is below the reference's, or where it is the reference's own, below the next."""
    base = next(arm for arm in arms if arm["name"] == reference)
    other = second if best is base or base["val_loss"] is None else base
    if other["seeds"] != best["seeds"]:  # then a difference of means is one of seeds too
        return f"; that of {other['name']} is {loss(other['val_loss'])}, over other seeds"
    return f", {other['val_loss'] - best['val_loss']:.4f} below that of {other['name']} ({loss(other['val_loss'])})"


def _certainty(document: Document, best: str) -> list[str]:
    """What the differences from the reference show, and how many seeds would show more."""
    rows = [row for row in document["differences"] if row["family"] == "reference"]
    if all(len(row["seeds"]) < 2 for row in document["differences"]):
        return ["One seed settles nothing: another seed could reverse the order."]
    told = [_shown(row) for row in rows] if len(rows) < FEW else _counted(rows, document["reference"])
    return [*told, *_runner_up(document, best), *_power(rows)]


def _shown(row: Document) -> str:
    """A difference with all that speaks for and against it."""
    if row["interval"] is None:
        return f"{row['b']} against {row['a']}: {row['verdict']}."
    low, high = map(signed, row["interval"])
    known = f"{signed(row['mean'])} nats ({percent(row['relative'])}), 95 % interval {low} to {high} over "
    known += f"{len(row['seeds'])} seeds, corrected p {chance(row['p_corrected'])}"
    if row["effect"] is not None:
        known += f", {number(abs(row['effect']), 2)} times the spread between seeds"
    if row["verdict"] in ("lower", "higher"):
        return f"{row['b']} is {row['verdict']} than {row['a']}: {known}."
    return f"Between {row['b']} and {row['a']}: {row['verdict']} ({known})."


def _counted(rows: list[Document], reference: str) -> list[str]:
    """The same of many arms: which are shown to differ, of which nothing is shown, and of which nothing is settled."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["verdict"].partition(":")[0], []).append(row["b"])
    shown = [
        f"{named(found[verdict])} {'is' if len(found[verdict]) == 1 else 'are'} {verdict} than {reference}"
        for verdict in ("lower", "higher")
        if verdict in found
    ]
    sentences = [f"Corrected for {len(rows)} differences, {listed(shown)}."] if shown else []
    unshown = found.get("no difference shown", [])
    if unshown:
        sentences.append(f"For {named(unshown)} no difference from {reference} is shown.")
    rest = [name for verdict in found if verdict not in SETTLED for name in found[verdict]]
    return sentences + ([f"For {named(rest)} nothing is settled: the table says why."] if rest else [])


def _runner_up(document: Document, best: str) -> list[str]:
    """How the lowest loss stands against the next lowest, where neither is the reference."""
    ranked = sorted((arm for arm in document["arms"] if arm["val_loss"] is not None), key=lambda arm: arm["val_loss"])
    rows = [
        row
        for row in document["differences"]
        if row["family"] == "others" and {row["a"], row["b"]} == {best, ranked[1]["name"]}
    ]
    return [_shown(row) for row in rows]


def _power(rows: list[Document]) -> list[str]:
    """What these seeds could have shown, because a difference that is not shown may still be there."""
    open_ = [row["power"] for row in rows if row["power"] and row["verdict"] == "no difference shown"]
    if not open_:
        return []
    least = max(open_, key=lambda power: power["more"])
    text = f"The present seeds show a difference of {100 * least['smallest']:.2g} % or more four times in five"
    if least["more"] <= 0:
        return [f"{text}, and so one of {100 * least['detect']:g} %."]
    amount = f"{'at least ' if least['capped'] else ''}{many(least['more'], 'more seed')}"
    return [f"{text}; {amount} an arm would be needed to see {100 * least['detect']:g} % in each."]


def _cost(document: Document) -> list[str]:
    others = [arm for arm in document["arms"] if arm["name"] != document["reference"]]
    if document["concurrent"] > 1:
        shared = f"{document['concurrent']} runs shared the machine at a time"
        return [f"{shared}, so that speeds, times and memory are not measurements of an arm."]
    timed = sorted((arm for arm in others if arm["relative_step_time"] is not None), key=_step_time)
    if not timed:
        return []
    shown = timed if len(timed) < FEW else [timed[0], timed[-1]]
    times = listed([f"{_step_time(arm):.2f} times as long in {arm['name']}" for arm in shown])
    between = "" if shown is timed else "between "
    same = any(row["name"] == "hardware" and row["state"] == "same" for row in document["requirements"])
    caveat = "timed in separate runs" if same else "but the hardware or its settings were not the same"
    return [f"Compared with {document['reference']}, a training step took {between}{times} ({caveat})."]


def _step_time(arm: Document) -> float:
    return float(arm["relative_step_time"])


def path_summary(document: Document) -> list[tuple[str, str]]:
    """For the arms that charts show in full strength, the name and a few sentences on the residual path: gains, broken
    laws, what has become of the streams."""
    shown = sorted(prominent(document))
    return [(document["arms"][index]["name"], path(document["arms"][index]["last"])) for index in shown]


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
