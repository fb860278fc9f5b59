"""Whether runs may be compared: what must be the same, what is, and what follows where it is not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mhc_train.report.collect import Arm, RunRecord


@dataclass(frozen=True)
class Requirement:
    """Something that should be the same in all runs, and why it matters."""

    name: str
    read: Callable[[RunRecord], Any]
    matters: str
    decisive: bool = True
    """Whether a difference makes the losses not comparable; otherwise it only limits what may be read off."""
    per_seed: bool = False
    """Whether it may differ between seeds, and must agree only within one."""


def _config(*keys: str) -> Callable[[RunRecord], Any]:
    def read(record: RunRecord) -> Any:
        value: Any = record.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return read


def _code(record: RunRecord) -> Any:
    """Version and commit; unknown where uncommitted changes were run, since they leave no trace."""
    git = record.environment.get("git")
    if git is not None and not git["clean"]:
        return None
    return [record.environment.get("mhc_train"), git and git["commit"]]


REQUIREMENTS = (
    Requirement("validation set", lambda r: r.status.get("validation_sha256"), "losses are over different text"),
    Requirement("tokenizer", lambda r: r.status.get("tokenizer_sha256"), "a token does not mean the same"),
    Requirement("token budget", lambda r: r.status.get("tokens"), "one was trained on more text"),
    Requirement(
        "training tokens in order", lambda r: r.status.get("order_fingerprint"), "they saw other text or another order"
    ),
    Requirement(
        "backbone weights at the start",
        lambda r: r.status.get("backbone_fingerprint"),
        "they started from different weights",
        per_seed=True,
    ),
    Requirement("model", _config("model"), "the backbones differ"),
    Requirement("optimizer", _config("optim"), "the optimizers differ"),
    Requirement("batch", _config("train", "batch_tokens"), "the batches differ"),
    Requirement("precision", lambda r: r.status.get("precision"), "they were computed in different precision"),
    Requirement("code", _code, "the code differs", False),
    Requirement(
        "hardware",
        lambda r: [r.environment.get(key) for key in ("processor", "accelerator", "threads", "torch")],
        "speeds and memory are not comparable",
        False,
    ),
)  # fmt: skip


def check(arms: list[Arm]) -> list[dict[str, Any]]:
    """A row for every requirement: `same`, `different` or `unknown`, and what a difference means."""
    seeds = {frozenset(record.status.get("seed") for record in arm.records) for arm in arms}
    rows = [_row(requirement, arms) for requirement in REQUIREMENTS]
    state = "same" if len(seeds) == 1 else "different"
    return [*rows, {"name": "seeds", "state": state, "matters": "runs cannot be paired by seed", "decisive": False}]


def reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Why the runs are not comparable; empty if they are."""
    return [
        f"{row['name']} {row['state']}: {row['matters']}" for row in rows if row["decisive"] and row["state"] != "same"
    ]


def _row(requirement: Requirement, arms: list[Arm]) -> dict[str, Any]:
    values: dict[Any, list[Any]] = {}
    for record in (record for arm in arms for record in arm.records):
        key = record.status.get("seed") if requirement.per_seed else None
        values.setdefault(key, []).append(requirement.read(record))
    if any(value is None for group in values.values() for value in group):
        state = "unknown"
    else:
        same = all(value == group[0] for group in values.values() for value in group)
        state = "same" if same else "different"
    return {
        "name": requirement.name,
        "state": state,
        "matters": requirement.matters,
        "decisive": requirement.decisive,
    }
