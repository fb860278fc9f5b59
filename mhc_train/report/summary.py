"""A comparison in sentences: what was trained, who has the lowest loss, what it cost, what became of the streams."""

from statistics import fmean
from typing import Any

from mhc_train.report.readings import Document, final_losses, judged, largest, prominent, uneven
from mhc_train.report.words import (
    FEW,
    Number,
    budget_of,
    chance,
    counted,
    law_name,
    listed,
    loss,
    many,
    named,
    number,
    percent,
    signed,
    verdict_of,
)

COLLAPSED, QUIET = 0.1, 1.1
"""A composite that keeps less than a tenth of differences while its gain is at most 1.1 looks better than it is."""
SETTLED = ("lower", "higher", "no difference shown")
"""Verdicts that the seeds speak."""
UNPAIRED = {
    "one seed: settles nothing": "One seed settles nothing: another seed could reverse the order.",
    "no common seed": "No two arms have a seed in common, so that nothing can be paired.",
}
"""What follows where it is the verdict on all differences."""
TIMED = {
    "same": "timed in separate runs",
    "different": "but the hardware or its settings were not the same",
    "unknown": "but whether on the same hardware is not known",
}
"""What the state of the hardware says of step times."""
COPIES = 1e-3
"""Share of the energy in differences between streams below which they are called copies."""


def summary(document: Document) -> list[str]:
    """What was trained, what went missing, who has the lowest loss and how far to trust that, and what it cost."""
    return [_scope(document), *_missing(document), *_tuning(document), *_loss(document), *_cost(document)]


def _scope(document: Document) -> str:
    trained = [arm for arm in document["arms"] if arm["runs"]]
    without = [arm["name"] for arm in document["arms"] if not arm["runs"]]
    parts = [_trained(trained) if trained else "No run finished"]
    parts += [f"no run of {named(without)} finished"] if trained and without else []
    parts += [f"the reference is {document['reference']}"] if len(document["arms"]) > 1 else []
    return f"{'; '.join(parts)}."


def _trained(arms: list[Document]) -> str:
    tokens = sorted({arm["tokens"] for arm in arms if arm["tokens"] is not None})
    amount = f" on {listed(list(map(counted, tokens)))} tokens" if tokens else ""
    each = " each" if len(arms) > 1 and len(tokens) == 1 else ""
    verb = "was" if len(arms) == 1 else "were"
    return f"{named([arm['name'] for arm in arms])} {verb} trained{amount}{each}, with {_seeds(arms)}"


def _seeds(arms: list[Document]) -> str:
    """How many finished, of arms that may have different numbers."""
    least, most = (bound(len(arm["seeds"]) for arm in arms) for bound in (min, max))
    if least < most:
        return f"{least} to {most} seeds"
    return "one seed" if most == 1 else f"{most} seeds"


def _missing(document: Document) -> list[str]:
    """Runs that failed or left nothing: whoever is not told of them takes the others for all."""
    arms = document["arms"]
    failed = [_run(arm, run["seed"]) for arm in arms for run in arm["failed"]]
    unread = [_run(arm, seed) for arm in arms for seed, value in arm["val_loss_by_seed"].items() if value is None]
    sentences = []
    if failed:
        amount = many(len(failed), "run")
        sentences.append(f"{amount} did not finish{_few(failed)}; no mean has a number of such a run.")
    if unread:
        amount = many(len(unread), "run")
        sentences.append(f"{amount} ended without a finite validation loss{_few(unread)}, which counts as a failure.")
    if document["lost"]:
        sentences.append(f"{many(len(document['lost']), 'planned run')} left nothing to compare.")
    return sentences


def _run(arm: Document, seed: int | str) -> str:
    return f"{arm['name']} with seed {seed}"


def _few(names: list[str]) -> str:
    """The names in brackets, where they are not too many for a sentence."""
    return f" ({listed(names)})" if len(names) <= FEW else ""


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
    losses = {arm["name"]: found for arm in document["arms"] if (found := final_losses(arm))}
    if not document["comparable"]:
        return [f"The runs are not comparable ({'; '.join(document['reasons'])}), so their losses are not ranked."]
    if not losses:
        return ["No final validation loss is known."]
    if len(document["arms"]) == 1:
        (found,) = losses.values()
        return [f"Its validation loss is {loss(fmean(found.values()))} nats per token."]
    if len(losses) < 2:
        return [f"Only {listed(list(losses))} has a final validation loss, so that nothing is compared."]
    return _ranking(document, losses)


def _ranking(document: Document, losses: dict[str, dict[str, float]]) -> list[str]:
    """The lowest mean, over seeds that all arms have: a mean over easier seeds would be lower for that alone."""
    common, apart = set.intersection(*map(set, losses.values())), uneven(document)
    if apart and len(common) < 2:
        told = "Fewer than two seeds are common to all arms, so that their means are not ranked."
        return [told, *_certainty(document, [])]
    means = {name: fmean(found[seed] for seed in common) for name, found in losses.items()}
    ranked = sorted(means, key=lambda name: means[name])
    over = f" over the {len(common)} common seeds" if apart else ""
    kind = "mean validation loss" if len(common) > 1 else "validation loss"
    lead = f"The lowest {kind}{over} is that of {ranked[0]}, {loss(means[ranked[0]])} nats per token"
    return [f"{lead}{_margin(means, ranked, document['reference'])}.", *_certainty(document, ranked)]


def _margin(means: dict[str, float], ranked: list[str], reference: str) -> str:
    """How far the lowest loss is below the reference's, or where it is the reference's own, below the next."""
    best, second = ranked[:2]
    other = second if best == reference or reference not in means else reference
    return f", {means[other] - means[best]:.4f} below that of {other} ({loss(means[other])})"


def _certainty(document: Document, ranked: list[str]) -> list[str]:
    """What the differences from the reference show, and how many seeds would show more."""
    rows = [row for row in document["differences"] if row["family"] == "reference"]
    verdicts = {row["verdict"] for row in document["differences"]}
    if len(verdicts) == 1 and verdicts <= UNPAIRED.keys():
        return [UNPAIRED[verdicts.pop()]]
    told = list(map(_shown, rows)) if len(rows) < FEW else _counted(rows, document["reference"])
    return [*told, *_runner_up(document, ranked), *_power(rows)]


def difference_lines(document: Document) -> list[str]:
    """Every arm against the reference, a line each: the difference, what speaks for it, and the verdict."""
    return [
        f"{row['b']} - {row['a']}: {': '.join(filter(None, (_estimate(row), verdict_of(row))))}"
        for row in document["differences"]
        if row["family"] == "reference"
    ]


def _estimate(row: Document) -> str:
    """A difference in numbers, as far as there are any."""
    if row["mean"] is None:
        return ""
    text = f"{signed(row['mean'])} nats ({percent(row['relative'])})"
    if row["interval"] is None:
        return text
    low, high = map(signed, row["interval"])
    over = f"over {many(len(row['seeds']), 'seed')}"
    return f"{text}, 95 % interval {low} to {high} {over}, corrected p {chance(row['p_corrected'])}"


def _shown(row: Document) -> str:
    """A difference as a sentence."""
    if row["interval"] is None:
        return f"{row['b']} against {row['a']}: {row['verdict']}."
    known = _estimate(row)
    if row["effect"] is not None:
        known += f", {number(abs(row['effect']), 2)} times the spread between seeds"
    if row["verdict"] in ("lower", "higher"):
        return f"{row['b']} is {row['verdict']} than {row['a']}: {known}."
    return f"Between {row['b']} and {row['a']}: {row['verdict']} ({known})."


def _by_verdict(rows: list[Document]) -> dict[str, list[str]]:
    """The arms that were held against the reference, by what was found, without its reasons."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["verdict"].partition(":")[0], []).append(row["b"])
    return found


def _counted(rows: list[Document], reference: str) -> list[str]:
    """The same of many arms: which are shown to differ, of which nothing is shown, and of which nothing is settled."""
    found = _by_verdict(rows)
    shown = [
        f"{named(found[verdict])} {'is' if len(found[verdict]) == 1 else 'are'} {verdict} than {reference}"
        for verdict in ("lower", "higher")
        if verdict in found
    ]
    tested = sum(row["p_value"] is not None for row in rows)
    sentences = [f"Corrected for {many(tested, 'difference')}, {listed(shown)}."] if shown else []
    unshown = found.get("no difference shown", [])
    if unshown:
        sentences.append(f"For {named(unshown)} no difference from {reference} is shown.")
    rest = [name for verdict in found if verdict not in SETTLED for name in found[verdict]]
    return sentences + ([f"For {named(rest)} nothing is settled: the table says why."] if rest else [])


def _runner_up(document: Document, ranked: list[str]) -> list[str]:
    """How the lowest loss stands against the next lowest, where neither is the reference."""
    rows = [
        row for row in document["differences"] if row["family"] == "others" and {row["a"], row["b"]} == set(ranked[:2])
    ]
    return list(map(_shown, rows))


def _power(rows: list[Document]) -> list[str]:
    """What these seeds could have shown, because a difference that is not shown may still be there."""
    open_ = [row for row in rows if row["power"] and row["verdict"] == "no difference shown"]
    if not open_:
        return []
    row = max(open_, key=lambda row: row["power"]["more"])
    least, which = row["power"], ", the noisiest of these," if len(open_) > 1 else ""
    text = f"For {row['b']} against {row['a']}{which} the present seeds show a difference of "
    text += f"{100 * least['smallest']:.2g} % or more four times in five"
    if least["more"] <= 0:
        return [f"{text}, and so one of {100 * least['detect']:g} %."]
    amount = f"{'at least ' if least['capped'] else ''}{many(least['more'], 'more seed')}"
    return [f"{text}; {amount} an arm would be needed to see {100 * least['detect']:g} %."]


def at_equal_budgets(document: Document) -> list[str]:
    """Who stands where against the reference at equal tokens, operations and time, in a line each."""
    return [
        f"{budget_of(row)}: {'; '.join(_grouped(row['differences']))}"
        for row in document["budgets"]
        if row["differences"]
    ]


def _grouped(rows: list[Document]) -> list[str]:
    found = _by_verdict(rows)
    # What is shown stands first.
    return [
        f"{named(names)} {verdict}" if verdict in ("lower", "higher") else f"{verdict} for {named(names)}"
        for verdict, names in sorted(found.items(), key=lambda pair: pair[0] not in ("lower", "higher"))
    ]


def crossings(document: Document) -> list[str]:
    """Whether loss curves change places with the reference's; the same reason for many arms is said once."""
    never = [row["b"] for row in document["crossings"] if row["state"] == "none"]
    told = list(dict.fromkeys(row["text"] for row in document["crossings"] if row["state"] != "none"))
    if never:
        told.append(
            f"The mean difference from {document['reference']} keeps its sign at all common validations for "
            f"{named(never)}."
        )
    return told


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
    (state,) = (row["state"] for row in document["requirements"] if row["name"] == "hardware")
    return [f"Compared with {document['reference']}, a training step took {between}{times} ({TIMED[state]})."]


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
