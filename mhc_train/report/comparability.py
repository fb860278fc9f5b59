"""Whether runs may be compared: what must be the same, what is, and what follows where it is not."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from mhc_train.config.compose import flatten
from mhc_train.report.collect import SEEDS, Arm, RunRecord
from mhc_train.report.words import listed

SHORT = 80
"""Characters of values that a sentence can hold."""
HASH = 12
"""Characters of a hash that are shown."""


@dataclass(frozen=True)
class Requirement:
    """Something that should be the same in all runs, and why it matters."""

    name: str
    read: Callable[[RunRecord], Any]
    """What a run has; a dictionary is compared key by key; None is unknown."""
    matters: str
    decisive: bool = True
    """Whether a difference makes the losses not comparable; otherwise it only limits what may be read off."""
    besides: str = ""
    """What can be said where it differs."""
    at_end: bool = False
    """Whether only a run that finished has it."""
    length: bool = False
    """Whether it is the length of a training, so that runs that differ in it may be compared at equal tokens."""
    within: Callable[[RunRecord], Hashable] = lambda record: None
    """It must agree only between runs that have this in common."""
    instead: Callable[[RunRecord], Any] = lambda record: None
    """What must agree between runs of one seed that have nothing in common within which it must, for them to be
    compared at equal tokens; None is unknown."""
    follows: tuple[str, ...] = ()
    """Configuration keys, or sections, that it cannot but follow; where arms differ in one on purpose, it decides
    nothing."""


def _status(key: str) -> Callable[[RunRecord], Any]:
    return lambda record: record.status.get(key)


def _section(name: str, *keys: str) -> Callable[[RunRecord], Any]:
    """A section of the configuration as dotted keys, or these keys of it; None if there is none."""

    def read(record: RunRecord) -> Any:
        flat = flatten({name: record.config.get(name) or {}})
        known = {key: value for key, value in flat.items() if value is not None}
        return {key: value for key, value in known.items() if not keys or key in keys} or None

    return read


def _code(record: RunRecord) -> Any:
    """Version and commit; unknown where uncommitted changes were run, since they leave no trace."""
    git = record.environment.get("git")
    if not record.environment or (git is not None and not git["clean"]):
        return None
    return {"version": record.environment.get("mhc_train"), "commit": git and git["commit"]}


def _hardware(record: RunRecord) -> Any:
    keys = ("processor", "accelerator", "threads", "torch")
    return {key: record.environment.get(key) for key in keys} if record.environment else None


def _stream_precision(record: RunRecord) -> Any:
    # Runs from before there was a choice kept them in float32.
    return record.config.get("train", {}).get("stream_precision", "float32") if record.config else None


REQUIREMENTS = (
    Requirement("validation set", _status("validation_sha256"), "losses are over different text"),
    Requirement("tokenizer", _status("tokenizer_sha256"), "a token does not mean the same"),
    Requirement(
        "token budget",
        _status("tokens"),
        "one was trained on more text",
        besides="losses at the end say nothing of the arms, those at equal tokens may",
        at_end=True,
        length=True,
    ),
    Requirement(
        "training tokens in order",
        _status("order_fingerprint"),
        "they saw other text or another order",
        at_end=True,
        # The fingerprint is of all tokens of a training.
        within=lambda record: (record.seed, record.status.get("tokens")),
        instead=_section("data"),
        follows=("data",),
    ),
    Requirement(
        "backbone weights at the start",
        _status("backbone_fingerprint"),
        "they started from different weights",
        within=lambda record: record.seed,
        follows=("model", "data.vocab_size"),
    ),
    Requirement("model", _section("model"), "the backbones differ"),
    Requirement("optimizer", _section("optim"), "the optimizers differ"),
    Requirement("batch", _section("train", "train.batch_tokens"), "the batches differ"),
    Requirement(
        "precision", _status("precision"), "they were computed in different precision", follows=("train.precision",)
    ),
    Requirement(
        "precision of the streams",
        _stream_precision,
        "their residual streams were rounded differently",
        follows=("train.stream_precision",),
    ),
    Requirement("code", _code, "the code differs", decisive=False),
    Requirement("hardware", _hardware, "speeds and memory are not comparable", decisive=False),
)


def check(arms: Sequence[Arm], varied: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for every requirement: `same`, `different` or `unknown`, what a difference means, and who has what.

    Args:
        arms: failed runs count too, as far as they came.
        varied: configuration keys in which the arms differ on purpose.
    """
    return [*(_row(requirement, arms, varied) for requirement in REQUIREMENTS), _seeds(arms)]


def reasons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why the runs are not comparable; empty if they are."""
    return [
        f"{row['name']} {row['state']}{_in_short(row)}: " + "; ".join(filter(None, (row["matters"], row["besides"])))
        for row in rows
        if forbids(row)
    ]


def _in_short(row: dict[str, Any]) -> str:
    """Which keys have which values, where that is short enough for a sentence; hashes say nothing to a reader."""
    text = " or ".join(value["value"] for value in row["values"])
    return f" ({text})" if "=" in text and len(text) <= SHORT else ""


def forbids(row: dict[str, Any]) -> bool:
    """Whether runs are not comparable for this reason alone."""
    return bool(row["decisive"] and row["state"] != "same")


def forbids_at_equal_tokens(row: dict[str, Any]) -> bool:
    """Whether they are not even where they have seen equally many tokens."""
    return forbids(row) and not row["of_length"]


def _row(requirement: Requirement, arms: Sequence[Arm], varied: Sequence[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    groups: dict[Hashable, list[str]] = {}
    for arm in arms:
        for record in arm.records if requirement.at_end else arm.runs:
            run = f"{arm.name} seed {record.seed}"
            facts[run] = _without(requirement.read(record), varied)
            groups.setdefault(requirement.within(record), []).append(run)
    apart = [run for group in groups.values() if not _agree([facts[run] for run in group]) for run in group]
    lacking = sum(fact is None for fact in facts.values())
    state, matters = "different" if apart else "same", requirement.matters
    of_length = requirement.length and bool(apart)
    if lacking or not facts:
        state, matters, of_length = "unknown", _nobody_knows(lacking, len(facts)), False
    elif not apart and requirement.at_end and _nobody_to_compare(requirement, arms):
        state, matters = "unknown", "recorded of whole trainings only, and these are of unequal length"
        of_length = _agree_by_seed(requirement.instead, arms, varied)
    return {
        "name": requirement.name,
        "state": state,
        "matters": matters,
        "besides": requirement.besides if state == "different" else "",
        "of_length": of_length,
        "decisive": requirement.decisive and not any(_on_purpose(key, varied) for key in requirement.follows),
        "values": _values({run: facts[run] for run in apart}) if state == "different" else [],
    }


def _nobody_knows(lacking: int, runs: int) -> str:
    if not runs:
        return "recorded at the end of a training, and none has finished"
    return "not recorded of any run" if lacking == runs else f"not recorded of {lacking} of {runs} runs"


def _without(fact: Any, varied: Sequence[str]) -> Any:
    """What a run has, but for the keys that were varied on purpose."""
    if not isinstance(fact, dict):
        return fact
    return {key: value for key, value in fact.items() if not any(_covers(own, key) for own in varied)}


def _covers(section: str, key: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _on_purpose(key: str, varied: Sequence[str]) -> bool:
    return any(own not in SEEDS and (_covers(key, own) or _covers(own, key)) for own in varied)


def _agree(values: list[Any]) -> bool:
    return all(value == values[0] for value in values)


def _nobody_to_compare(requirement: Requirement, arms: Sequence[Arm]) -> bool:
    """Whether runs with one seed have nothing in common within which they must agree."""
    return any(len({requirement.within(record) for record in runs}) > 1 for runs in _by_seed(arms))


def _agree_by_seed(read: Callable[[RunRecord], Any], arms: Sequence[Arm], varied: Sequence[str]) -> bool:
    """Whether the runs of each seed are known to have the same."""
    found = [[_without(read(record), varied) for record in runs] for runs in _by_seed(arms)]
    return all(None not in facts and _agree(facts) for facts in found)


def _by_seed(arms: Sequence[Arm]) -> list[list[RunRecord]]:
    """The runs that finished, those of one seed together."""
    found: dict[int, list[RunRecord]] = {}
    for record in (record for arm in arms for record in arm.records):
        found.setdefault(record.seed, []).append(record)
    return list(found.values())


def _values(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Who has what, in short; of dictionaries, the keys that differ."""
    found = list(facts.values())
    if all(isinstance(fact, dict) for fact in found):
        keys = [key for key in dict.fromkeys(key for fact in found for key in fact) if not _same(found, key)]
        texts = {run: ", ".join(f"{key}={_short(fact.get(key))}" for key in keys) for run, fact in facts.items()}
    else:
        texts = {run: _short(fact) for run, fact in facts.items()}
    return _alike(texts)


def _alike(texts: dict[str, str]) -> list[dict[str, Any]]:
    """Names by the text that they share."""
    return [
        {"runs": [name for name, own in texts.items() if own == text], "value": text}
        for text in dict.fromkeys(texts.values())
    ]


def _same(facts: list[dict[str, Any]], key: str) -> bool:
    return _agree([fact.get(key) for fact in facts])


def _short(value: Any) -> str:
    return value[:HASH] if isinstance(value, str) and len(value) > 2 * HASH and value.isalnum() else str(value)


def _seeds(arms: Sequence[Arm]) -> dict[str, Any]:
    """Of the runs that finished: only common seeds can be paired."""
    seeds = {arm.name: listed([str(seed) for seed in sorted(r.seed for r in arm.records)]) or "none" for arm in arms}
    state = "same" if len(set(seeds.values())) == 1 else "different"
    return {
        "name": "seeds",
        "state": state,
        "matters": "only runs with a common seed are compared",
        "besides": "",
        "of_length": False,
        "decisive": False,
        "values": _alike(seeds) if state == "different" else [],
    }
