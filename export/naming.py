"""Names of exported files: `<stem>-<encoding>`, the same stem for every format."""

from common.errors import UserError


def check_stem(stem: str) -> None:
    """UserError unless `stem` can begin a file's name."""
    if not stem or stem.startswith(".") or any(sign in stem for sign in "/\\:\0"):
        raise UserError(
            wanted="a stem that can begin a file's name", got=repr(stem), next_step="Use letters, digits and hyphens."
        )
