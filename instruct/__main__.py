"""`python -m instruct conversations | train`: one stage by itself, on one's own conversations and models.

Each verb turns its arguments into the stage's config and runs it into `--out`; running it again finds it done. Every
default is the config's own. It knows no recipe.
"""

from common.cli import command, run


def main(arguments: list[str]) -> None:
    """Parses `arguments` and runs one verb."""
    # Here and not above: reading this module, as a test or a tool does, need not load torch.
    from instruct.conversations import cli
    from instruct.train_cli import add_verbs

    parser = command("instruct", "Conversations to a chat checkpoint.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    cli.add_verb(subparsers)
    add_verbs(subparsers)
    parsed = parser.parse_args(arguments)
    parsed.function(parsed)


if __name__ == "__main__":
    run(main)
