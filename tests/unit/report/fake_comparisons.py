"""The whole document of a comparison, completed by hand with what made-up runs do not give."""

from itertools import combinations
from typing import Any

Document = dict[str, Any]
POWER = {"detect": 0.005, "seeds": 5, "more": 3, "smallest": 0.012}


def completed(document: Document, **settings: Any) -> Document:
    """`document` with every key of the report's schema; what it has already stays."""
    names = [arm["name"] for arm in document["arms"]]
    for row in document["requirements"]:
        row.setdefault("values", [])
    defaults: Document = {
        "schema_version": 2,
        "varied": [],
        "lost": [],
        "concurrent": 1,
        "tuning": [],
        "reference": names[0],
        "noise": {"metric": "val_loss", "sd": 0.02, "relative": 0.004, "degrees_of_freedom": 4},
        "budgets": [
            {
                "budget": budget,
                "amount": amount,
                "losses": {arm["name"]: arm["val_loss"] for arm in document["arms"]},
                "differences": [],
                "caveat": caveat,
            }
            for budget, amount, caveat in (
                ("tokens", 40_960.0, None),
                ("flops", 3.2e11, None),
                ("seconds", 90.0, "measured in separate runs"),
            )
        ],
        "crossings": [
            {"a": names[0], "b": name, "state": "none", "tokens": None, "text": f"{name} does not cross {names[0]}."}
            for name in names[1:]
        ],
    }
    if not all("family" in row for row in document["differences"]):
        document["differences"] = differences(document)
    return defaults | document | {"schema_version": 2} | settings


def differences(document: Document) -> list[Document]:
    """Every pair of arms, the reference's first, from the document's own losses."""
    arms = document["arms"]
    pairs = [(a, b) for a, b in combinations(arms, 2)]
    return sorted((difference(arms[0], a, b) for a, b in pairs), key=lambda row: row["family"] != "reference")


def difference(reference: Document, a: Document, b: Document) -> Document:
    known = {seed for seed in a["val_loss_by_seed"] if b["val_loss_by_seed"].get(seed) is not None}
    deltas = [b["val_loss_by_seed"][seed] - a["val_loss_by_seed"][seed] for seed in sorted(known)]
    mean = sum(deltas) / len(deltas) if deltas else None
    several = len(deltas) > 1
    verdict = "no common seed" if not deltas else "one seed: settles nothing"
    if several:
        assert mean is not None
        half = 2 * (max(deltas) - min(deltas))
        verdict = "no difference shown" if abs(mean) <= half else "lower" if mean < 0 else "higher"
    return {
        "a": a["name"],
        "b": b["name"],
        "metric": "val_loss",
        "family": "reference" if a is reference else "others",
        "seeds": sorted(map(int, known)),
        "mean": mean,
        "relative": mean / a["val_loss"] if mean is not None and a["val_loss"] else None,
        "interval": [mean - half, mean + half] if several and mean is not None else None,
        "p_value": 0.01 if several else None,
        "p_corrected": 0.02 if several else None,
        "effect": mean / 0.02 if several and mean is not None else None,
        "verdict": verdict,
        "power": POWER if several else None,
    }
