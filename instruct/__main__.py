"""`python -m instruct conversations | train`: one stage by itself, on your own conversations and models.

Each verb makes the stage's config of its arguments and runs the stage into `--out`; a second run finds it done.
"""

from common.cli import command, run


def main(arguments: list[str]) -> None:
    """Parse `arguments` and run one verb."""
    # Imported here: reading this module, as a test or a tool does, need not load torch.
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
