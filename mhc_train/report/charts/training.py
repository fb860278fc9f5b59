"""What training did: losses, gradient norms, and the composite gain from measurement to measurement."""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mhc_train.report.charts.curves import Points, by_x, ends, mean_curve, over_seeds, thick, thin, tokens_axis
from mhc_train.report.charts.depth import any_streams, why_no_depth
from mhc_train.report.charts.drawing import INK, Chart, Legend, Omitted, chart, look, scale
from mhc_train.report.charts.lines import gaps
from mhc_train.report.readings import largest


def loss(document: dict[str, Any]) -> Chart | Omitted:
    """Training and validation loss against tokens."""
    title = "Loss"
    arms = _with_curve(document, "train_loss") | _with_curve(document, "val_loss")
    if not arms:
        return Omitted(title, "no run logged a loss")
    several = any(len(arm["curves"]) > 1 for arm in arms.values())
    caption = "Thick with markers: validation loss" + (" (mean over seeds; thin: each seed)." if several else ".")
    caption += " Thin and pale: training loss, the mean since the logged step before."

    def draw(axes: Axes) -> None:
        for index, arm in arms.items():
            for run in arm["curves"]:
                thin(axes, run["train_loss"], look(index), 0.45)
            over_seeds(axes, _runs(arm, "val_loss"), look(index))
        tokens_axis(axes, "loss (nats per token)")

    spoken = [ends(arm["name"], mean_curve(_runs(arm, "val_loss")), "tokens") for arm in arms.values()]
    text = "Validation loss against tokens. " + " ".join(spoken)
    return chart("loss", title, caption, draw, _legend(document, sorted(arms)), text)


def loss_difference(document: dict[str, Any]) -> Chart | Omitted:
    """Validation loss minus the first arm's, at the same tokens and seed."""
    title = "Validation loss relative to the first arm"
    first, *others = document["arms"]
    if not others:
        return Omitted(title, "there is only one arm")
    curves = {index: _differences(first, arm) for index, arm in enumerate(others, start=1)}
    curves = {index: runs for index, runs in curves.items() if any(len(run) > 1 for run in runs)}
    if not curves:
        return Omitted(title, f"no arm was validated at the same tokens and seeds as {first['name']} more than once")
    caption = f"Below zero: lower loss than {first['name']} at the same number of tokens, with the same seed."

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=1, alpha=0.6)
        for index, runs in curves.items():
            over_seeds(axes, runs, look(index))
        tokens_axis(axes, "difference of loss (nats)")

    spoken = [ends(document["arms"][index]["name"], mean_curve(runs), "tokens") for index, runs in curves.items()]
    text = f"Validation loss minus that of {first['name']}, against tokens. " + " ".join(spoken)
    return chart("loss-difference", title, caption, draw, _legend(document, curves), text)


def gradient_norm(document: dict[str, Any]) -> Chart | Omitted:
    """Global gradient norm before clipping, against tokens."""
    title = "Gradient norm"
    arms = _with_curve(document, "grad_norm")
    if not arms:
        return Omitted(title, "no run logged a gradient norm")
    clip = document["configuration"]["shared"].get("optim.grad_clip")
    caption = "Global norm of the gradient before clipping"
    caption += f"; the horizontal line is the clipping threshold, {clip:g}." if clip else "."

    def draw(axes: Axes) -> None:
        if clip:
            axes.axhline(clip, color=INK, linewidth=1, alpha=0.6)
        for index, arm in arms.items():
            for points in _runs(arm, "grad_norm"):
                thin(axes, points, look(index), 0.9, look(index).dashes)
        tokens_axis(axes, "gradient norm")
        scale(axes, [norm for arm in arms.values() for run in _runs(arm, "grad_norm") for _, norm in run], span=0.1)

    spoken = [ends(arm["name"], mean_curve(_runs(arm, "grad_norm")), "tokens") for arm in arms.values()]
    text = "Gradient norm before clipping, against tokens. " + " ".join(spoken)
    return chart("gradient-norm", title, caption, draw, _legend(document, arms), text)


def gain_over_training(document: dict[str, Any], direction: str) -> Chart | Omitted:
    """The largest composite gain at every measurement; `direction` is forward or backward."""
    title = f"Composite {direction} gain during training"
    runs = {index: _gains(arm, direction) for index, arm in enumerate(document["arms"]) if arm["measurements"]}
    if not any_streams(document):
        return Omitted(title, why_no_depth(document))
    if not any(len(points) > 1 for points in runs.values()):
        return Omitted(title, "the residual path was measured fewer than two times")

    def draw(axes: Axes) -> None:
        axes.axhline(1, color=INK, linewidth=1, alpha=0.6)
        for index, points in runs.items():
            thick(axes, points, look(index))
        axes.set(xlabel="optimizer step", ylabel=f"largest {direction} Amax gain")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        scale(axes, [gain for points in runs.values() for _, gain in points])

    spoken = [ends(document["arms"][index]["name"], points, "steps") for index, points in runs.items()]
    text = f"Largest composite {direction} gain against training steps. " + " ".join(spoken)
    caption = f"Largest composite {direction} gain over sublayers and tokens at every measurement."
    short = {index: len(document["arms"][index]["measurements"]) - len(points) for index, points in runs.items()}
    caption += gaps((document["arms"][index]["name"], count) for index, count in short.items())
    return chart(f"training-{direction}", title, caption, draw, _legend(document, runs), text)


def _with_curve(document: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
    """Arms of which some run logged `key`, by their index."""
    return {index: arm for index, arm in enumerate(document["arms"]) if any(_runs(arm, key))}


def _runs(arm: dict[str, Any], key: str) -> list[Points]:
    return [run[key] for run in arm["curves"]]


def _differences(first: dict[str, Any], arm: dict[str, Any]) -> list[Points]:
    """Validation loss of `arm` minus that of `first`, for every common seed at every common number of tokens."""
    base = {run["seed"]: by_x(run["val_loss"]) for run in first["curves"]}
    return [
        [
            (tokens, value - base[run["seed"]][tokens])
            for tokens, value in run["val_loss"]
            if tokens in base[run["seed"]]
        ]
        for run in arm["curves"]
        if run["seed"] in base
    ]


def _gains(arm: dict[str, Any], direction: str) -> list[Any]:
    """(step, gain) of every measurement with a finite gain."""
    gains = [(m["step"], largest(m["composite"][direction], f"{direction}_gain")) for m in arm["measurements"]]
    return [(step, gain) for step, gain in gains if gain is not None]


def _legend(document: dict[str, Any], drawn: Iterable[int]) -> Legend:
    return [(document["arms"][index]["name"], look(index)) for index in drawn]
