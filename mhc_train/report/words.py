"""Words and numbers of the reports: how a value is written, how a list is read, what is safe in Markdown."""

import math
import re
from typing import Any

Real = float | int
Number = Real | None

MISSING = "not finite or not logged"
MINUS = "\u2212"
SYMBOLS = {"ok": "\u2713", "same": "\u2713", "warn": "!", "unknown": "?", "fail": "\u2717", "different": "\u2717"}
REPLACEMENTS = {
    "identity": "I",
    "token_mean": "its mean over tokens",
    "uniform": "J/n",
    "diagonal": "itself without off-diagonals",
    "permuted": "itself with receivers shifted by one",
}
"""What takes the place of H_res in an ablation."""
FEW = 4
"""Names that a sentence can list one by one."""


def number(value: Number, digits: int = 4) -> str:
    """A measurement to so many significant digits; null, which is what JSON has for them, is "not finite"."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0 or isinstance(value, int):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e5:
        return typeset(f"{value:.{digits - 1}e}")
    rounded = float(f"{value:.{digits - 1}e}")  # 0.99999 is 1.000, not 1.0000
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return typeset(f"{value:.{decimals}f}")


def short(value: Real) -> str:
    """At most four significant digits, without zeros at their end: for limits and descriptions."""
    return typeset(f"{value:.4g}")


def typeset(text: str) -> str:
    """A number as Python writes it, with a real minus and no padded exponent."""
    return re.sub(r"e([+-])0*", r"e\1", text).replace("-", MINUS).replace("e+", "e")


def loss(value: Number) -> str:
    """A loss or bits per byte, to four decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: Number) -> str:
    """A difference of losses, with its sign; there is no negative zero."""
    return "none" if value is None else typeset(f"{round(value, 4) + 0.0:+.4f}")


def percent(share: Number) -> str:
    """A relative difference with its sign, to three digits."""
    return "" if share is None else typeset(f"{100 * share + 0.0:+.3g}\u00a0%")


def chance(p_value: Number) -> str:
    """A p-value, to two digits."""
    if p_value is None:
        return "none"
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def duration(seconds: Number) -> str:
    """Seconds, or minutes or hours where there are many."""
    if seconds is None:
        return MISSING
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g}\u00a0{unit}"
    return f"{seconds:.3g}\u00a0s"


def many(amount: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def memory(size: int | None) -> str:
    """Bytes as MiB, or GiB from one GiB on."""
    if size is None:
        return MISSING
    return f"{size / 2**30:.2f}\u00a0GiB" if size >= 2**30 else f"{size / 2**20:.1f}\u00a0MiB"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def named(names: list[str]) -> str:
    """The names, or how many arms there are where they are too many for a sentence."""
    return listed(names) if len(names) <= FEW else f"{len(names)} arms"


def law_name(law: str) -> str:
    """A law's identifier in words."""
    direction = {"closure_forward": "closure forwards", "closure_backward": "closure backwards"}
    return direction.get(law, law.replace("_", " "))


def kind_name(kind: str) -> str:
    """An ablation's identifier in words."""
    return kind.replace("_", " ")


def markdown_text(text: Any) -> str:
    """Text that shows as it is in a Markdown table or paragraph."""
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", " ".join(str(text).split())).replace("<", "&lt;").replace(">", "&gt;")


def fenced(text: str) -> str:
    """A fenced block that no text inside can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def verdict_of(row: dict[str, Any]) -> str:
    """The verdict on a difference, with the name of the arm that has the lower or higher loss."""
    verdict: str = row["verdict"]
    return f"{row['b']} is {verdict}" if verdict in ("lower", "higher") else verdict


def budget_of(row: dict[str, Any]) -> str:
    """What is held equal, and how much of it."""
    units = {"tokens": "tokens", "flops": "FLOPs"}
    unit, amount = units.get(row["budget"]), row["amount"]
    return f"equal {f'{counted(amount)} {unit}' if unit else duration(amount)}"


def count(value: Number) -> str:
    """A count in short, where there is one."""
    return MISSING if value is None else counted(value)


def rate(value: Number) -> str:
    """Tokens per second, where they were logged."""
    return MISSING if value is None else f"{value:.0f}"


def times(value: Number) -> str:
    """A ratio, where there is one."""
    return MISSING if value is None else f"{value:.2f}\u00a0\u00d7"


def counted(value: Real) -> str:
    """A count in short: 950, 1.35 M, 40 k."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}\u00a0{unit}"
    return f"{value:.3g}"
