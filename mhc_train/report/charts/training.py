"""What training did: losses, gradient norms, and the composite gain from measurement to measurement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mhc_train.report.charts.curves import Points, by_x, ends, mean_curve, over_seeds, thin, tokens_axis
from mhc_train.report.charts.depth import PAPER, any_streams, why_no_depth
from mhc_train.report.charts.drawing import INK, Chart, Omitted, chart, looks, scale
from mhc_train.report.charts.lines import gaps
from mhc_train.report.charts.readout import Trace
from mhc_train.report.readings import Document


def loss(document: Document) -> Chart | Omitted:
    """Training and validation loss against tokens."""
    title = "Loss"
    arms = _with_curve(document, "train_loss") | _with_curve(document, "val_loss")
    if not arms:
        return Omitted(title, "no run logged a loss")
    styles = looks(document)
    several = any(len(arm["curves"]) > 1 for arm in arms.values())
    caption = "Thick with markers: validation loss" + (" (mean over seeds; thin: each seed)." if several else ".")
    caption += " Thin and pale: training loss, the mean since the logged step before. The first tenth of the training "
    caption += "is cut off above, so that the rest can be told apart."

    def draw(axes: Axes) -> None:
        for index, arm in arms.items():
            for run in [] if styles[index].quiet else arm["curves"]:
                thin(axes, run["train_loss"], styles[index], 0.45)
            over_seeds(axes, _runs(arm, "val_loss"), styles[index])
        tokens_axis(axes, "loss (nats per token)")
        _without_start(axes, [points for arm in arms.values() for points in _runs(arm, "val_loss")])

    curves = {index: mean_curve(_runs(arm, "val_loss")) for index, arm in arms.items()}
    return _chart(document, "loss", title, caption, draw, curves, "Validation loss against tokens.")


def _without_start(axes: Axes, curves: list[Points]) -> None:
    """Let the axis end at the highest loss after a tenth of the training; before, all arms fall alike."""
    end = max((tokens for points in curves for tokens, _ in points), default=0)
    later = [loss for points in curves for tokens, loss in points if tokens >= end / 10]
    if end and later:
        margin = 0.05 * (max(later) - min(later))
        axes.set_ylim(min(axes.dataLim.ymin, min(later)) - margin, max(later) + margin)


def loss_difference(document: Document) -> Chart | Omitted:
    """Validation loss minus the reference's, at the same tokens and seed."""
    base, title = _reference(document), "Loss gap against the reference"
    curves = {
        index: _differences(base, arm) for index, arm in enumerate(document["arms"]) if arm["name"] != base["name"]
    }
    if not curves:
        return Omitted(title, "there is only one arm")
    curves = {index: runs for index, runs in curves.items() if any(len(run) > 1 for run in runs)}
    if not curves:
        return Omitted(title, f"no arm was validated at the same tokens and seeds as {base['name']} more than once")
    styles = looks(document)
    caption = f"Validation loss minus that of {base['name']} at the same number of tokens, with the same seed; below "
    caption += "zero is lower. "

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=1, alpha=0.6)
        for index, runs in curves.items():
            over_seeds(axes, runs, styles[index])
        tokens_axis(axes, "difference of loss (nats)")

    means = {index: mean_curve(runs) for index, runs in curves.items()}
    text = f"Validation loss minus that of {base['name']}, against tokens."
    return _chart(document, "loss-difference", title, caption + PAPER.format("Figures 2 and 5"), draw, means, text)


def gradient_norm(document: Document) -> Chart | Omitted:
    """Global gradient norm before clipping, against tokens."""
    title = "Gradient norm"
    arms = _with_curve(document, "grad_norm")
    if not arms:
        return Omitted(title, "no run logged a gradient norm")
    styles = looks(document)
    clip = document["configuration"]["shared"].get("optim.grad_clip")
    caption = "Global norm of the gradient before clipping"
    caption += f"; the horizontal line is the clipping threshold, {clip:g}. " if clip else ". "

    def draw(axes: Axes) -> None:
        if clip:
            axes.axhline(clip, color=INK, linewidth=1, alpha=0.6)
        for index, arm in arms.items():
            over_seeds(axes, _runs(arm, "grad_norm"), styles[index])
        tokens_axis(axes, "gradient norm")
        scale(axes, [norm for arm in arms.values() for run in _runs(arm, "grad_norm") for _, norm in run], span=0.1)

    curves = {index: mean_curve(_runs(arm, "grad_norm")) for index, arm in arms.items()}
    text = "Gradient norm before clipping, against tokens."
    return _chart(document, "gradient-norm", title, caption + PAPER.format("Figures 2 and 5"), draw, curves, text)


def over_training(document: Document, key: str) -> Chart | Omitted:
    """A number of the whole path at every measurement; `key` is one of `COURSES`."""
    course = COURSES[key]
    if not any_streams(document):
        return Omitted(course.title, why_no_depth(document))
    styles = looks(document)
    runs = {
        index: [_course(each["points"], key) for each in arm["courses"]]
        for index, arm in enumerate(document["arms"])
        if arm["last"] and not (key == "difference_gain" and arm["last"]["streams"] == 1)
    }
    if not any(len(points) > 1 for each in runs.values() for points in each):
        return Omitted(course.title, "the residual path was measured fewer than two times")

    def draw(axes: Axes) -> None:
        axes.axhline(1, color=INK, linewidth=1, alpha=0.6)
        for index, each in runs.items():
            over_seeds(axes, each, styles[index])
        axes.set(xlabel="optimizer step", ylabel=course.label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        scale(axes, [gain for each in runs.values() for points in each for _, gain in points])

    several = any(len(each) > 1 for each in runs.values())
    caption = course.caption + (" Thick: mean over seeds; thin: each seed." if several else "")
    caption += gaps((document["arms"][index]["name"], _missing(document["arms"][index], key)) for index in runs)
    curves = {index: mean_curve(each) for index, each in runs.items()}
    return _chart(
        document, f"training-{key.partition('_')[0]}", course.title, caption, draw, curves, f"{course.title}.", "steps"
    )


@dataclass(frozen=True)
class Course:
    """A chart of one number of the whole path over the training."""

    title: str
    caption: str
    label: str


COURSES = {
    f"{way}_gain": Course(
        f"Composite {way} gain during training",
        f"Largest composite {way} gain over sublayers and tokens at every measurement.",
        f"largest {way} Amax gain",
    )
    for way in ("forward", "backward")
} | {
    "difference_gain": Course(
        "Differences between streams during training",
        "What the composite of the whole depth leaves of differences between streams, median token: 0 is collapse.",
        "composite difference gain",
    )
}


def _chart(
    document: Document,
    key: str,
    title: str,
    caption: str,
    draw: Callable[[Axes], None],
    curves: Mapping[int, Points],
    reading: str,
    unit: str = "tokens",
) -> Chart:
    """A chart of arms by their index, each with the curve that stands for it in words and in the readout."""
    styles = looks(document)
    names = {index: document["arms"][index]["name"] for index in sorted(curves)}
    spoken = [ends(names[index], curves[index], unit) for index in names]
    legend = [(name, styles[index]) for index, name in names.items()]
    traces = [Trace(name, styles[index].colour, curves[index]) for index, name in names.items()]
    return chart(key, title, caption.strip(), draw, legend, " ".join([reading, *spoken]), traces, unit)


def _with_curve(document: Document, key: str) -> dict[int, Document]:
    """Arms of which some run logged `key`, by their index."""
    return {index: arm for index, arm in enumerate(document["arms"]) if any(_runs(arm, key))}


def _runs(arm: Document, key: str) -> list[Points]:
    return [run[key] for run in arm["curves"]]


def _differences(first: Document, arm: Document) -> list[Points]:
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


def _course(points: Points, key: str) -> list[Any]:
    """(step, value) of every measurement with a finite value."""
    return [(point["step"], point[key]) for point in points if point[key] is not None]


def _missing(arm: Document, key: str) -> int:
    return sum(point[key] is None for each in arm["courses"] for point in each["points"])


def _reference(document: Document) -> Document:
    reference: Document = next(arm for arm in document["arms"] if arm["name"] == document["reference"])
    return reference
