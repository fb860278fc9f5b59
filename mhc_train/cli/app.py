"""`mhc-train`: the application, and the one place where an error becomes a message and an exit code."""

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

import mhc_train
from mhc_train.cli.bench import bench
from mhc_train.cli.checkpoint import checkpoint
from mhc_train.cli.compare import compare
from mhc_train.cli.data import data
from mhc_train.cli.diagnose import diagnose
from mhc_train.cli.fit import fit
from mhc_train.cli.runs import runs
from mhc_train.console import say
from mhc_train.errors import Interrupted, MhcTrainError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, compare and audit language models whose residual stream is a hyper-connection.",
    epilog="Exit codes: 0 done; 1 internal error; 2 usage or configuration; 3 data; 4 checkpoint; 5 numerics; "
    "6 --fail-on holds; 7 cannot write; 75 stopped, by a signal or the time limit, after a save; 130 interrupted "
    "twice, or with nothing to save.",
)
app.command()(fit)
app.command()(compare)
app.command()(diagnose)
app.command()(runs)
app.command()(bench)
app.add_typer(data, name="data")
app.add_typer(checkpoint, name="checkpoint")


def _print_version(value: bool) -> None:
    if value:
        print(f"mhc-train {mhc_train.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    try:
        app()
    except MhcTrainError as error:
        _report(error)
        _end(error.exit_code)
    except SystemExit as end:
        if end.code == Interrupted.exit_code:  # into which Typer turns a Ctrl-C, without a word
            say("Interrupted.")
            _end(Interrupted.exit_code)
        raise
    except BrokenPipeError:  # the reader of our output has gone; that is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        say("Internal error: this is a fault of mhc-train. Please report the lines above.")
        _end(1)


def _end(code: int) -> NoReturn:
    """End the process; the groups of a training that has failed would wait for ranks that may never answer."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(error: MhcTrainError) -> None:
    lines = str(error).splitlines()
    label = "stopped" if error.exit_code in (75, 130) else "error"
    if len(lines) == 1:
        say(f"{label}: {lines[0]}")
    else:
        say(f"{label}: {len(lines)} problems")
        for line in lines:
            say(f"  {line}")
