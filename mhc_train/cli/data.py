"""`mhc-train data`: prepare a corpus before training, and look at what a configuration would read."""

from typing import Annotated, Any

import typer

from mhc_train.cli.options import ConfigDir, ConfigName, Json, Overrides

data = typer.Typer(no_args_is_help=True, help="Prepare text before training, or look at what would be read.")


@data.command()
def prepare(
    overrides: Overrides = None,
    config_name: ConfigName = "config",
    config_dir: ConfigDir = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Write the tokens of all documents too; training then reads them instead."),
    ] = False,
    json: Json = False,
) -> None:
    """Train the tokenizer and choose the validation set; with --tokens, tokenise everything once.

    Prepared tokens come in the same order as the text would, so they may be made or deleted between a run and its
    continuation. An interrupted call goes on with the first file that it had not finished.

    Examples:

    mhc-train data prepare data=wiki

    mhc-train data prepare data=json 'data.path=corpus/*.jsonl' --tokens
    """
    from mhc_train.cli.output import print_json, print_table
    from mhc_train.config.compose import compose
    from mhc_train.data.prepare import prepare as run

    document = run(compose(overrides or [], config_name, config_dir).data, tokens)
    if json:
        print_json(document)
        return
    facts = [(key, f"{document[key]}") for key in document if key not in ("schema_version", "prepared")]
    for prepared in document["prepared"]:
        facts += [(f"prepared {key}", f"{prepared[key]}") for key in ("directory", "files", "documents", "tokens")]
    print_table("Prepared", ("", "value"), facts)


@data.command()
def inspect(
    overrides: Overrides = None,
    config_name: ConfigName = "config",
    config_dir: ConfigDir = None,
    documents: Annotated[
        int, typer.Option("--documents", min=1, help="First documents of each source that the statistics are over.")
    ] = 1000,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps that the order's fingerprint covers.")] = 10,
    json: Json = False,
) -> None:
    """Show documents, tokens, a decoded sample, and the fingerprint of the training order.

    A run on the same data with as many steps has the same `order_fingerprint` in its status.json.

    Examples:

    mhc-train data inspect data=wiki

    mhc-train data inspect data=fineweb_edu --documents 200 --json
    """
    from mhc_train.cli.output import print_json
    from mhc_train.config.compose import compose
    from mhc_train.data.inspection import inspect as run

    document = run(compose(overrides or [], config_name, config_dir), documents, steps)
    if json:
        print_json(document)
    else:
        _print_inspection(document)


def _print_inspection(document: dict[str, Any]) -> None:
    from mhc_train.cli.output import number, print_table

    print_table(
        "Sources",
        ("source", "share", "files", "a lane reads", "revision", "prepared tokens"),
        [
            (
                source["source"],
                f"{source['share']:.1%}",
                str(source["files"]),
                f"{source['parts_a_lane']} {'whole' if source['whole_files'] else 'parts of files'}",
                source["revision"] or "-",
                source["prepared"] or "-",
            )
            for source in document["sources"]
        ],
    )
    statistics = [(source["source"], source["first_documents"]) for source in document["sources"]]
    kinds = ("records", "training", "held_out", "empty", "unreadable", "tokens")
    print_table(
        "First documents",
        ("source", *kinds, "median tokens", "p99", "max", "bytes a token"),
        [
            (
                name,
                *(f"{facts[kind]:,}" for kind in kinds),
                *(number(value, 0) for value in facts["tokens_per_document"].values()),
                number(facts["bytes_per_token"]),
            )
            for name, facts in statistics
        ],
    )
    tokenizer, validation, order = document["tokenizer"], document["validation"], document["order"]
    print(f"Tokenizer: {tokenizer['vocab_size']:,} ids, sha256 {tokenizer['sha256']}")
    print(
        f"Validation: {validation['tokens']:,} tokens in {validation['sequences']:,} sequences, "
        f"{validation['bytes_per_token']:.3f} bytes a token, sha256 {validation['sha256']}"
    )
    print(f"Order: {order['steps']} steps, {order['tokens']:,} tokens, fingerprint {order['fingerprint']}")
    print(f"The first sequence begins:\n{document['sample']}")
