"""Decryption by the user's own `gpg`: one file, symmetric, with a passphrase from the environment.

The passphrase goes from the environment through a pipe into `gpg`, and nowhere else: no argument, file, error or log
holds it, and neither `gpg` nor its agent inherits the variable. `gpg` runs in a home of its own, without key rings,
configuration and running agents of the user. Independent of the content of the file.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

from common.errors import UserError


def check(name: str, *, variable: str, key_hint: str) -> tuple[str, str]:
    """The path of gpg and the passphrase, before any work.

    Args:
        name: of the encrypted file, for errors.
        variable: environment variable that holds the passphrase.
        key_hint: next step of a user without it.

    Raises:
        UserError: no `gpg`, or no passphrase.
    """
    passphrase = os.environ.get(variable, "").strip()
    if not passphrase.isprintable() or not passphrase:
        wanted = f"the passphrase of {name} in the environment variable {variable}, one line"
        got = "several lines, or unprintable characters" if passphrase else "none"
        raise UserError("no-access", wanted=wanted, got=got, next_step=key_hint)
    program = shutil.which("gpg")
    if program is None:
        next_step = "install GnuPG 2.1 or newer, or give the file decrypted"
        wanted = f"the program gpg, to decrypt {name}"
        raise UserError("not-installed", wanted=wanted, got="none on the PATH", next_step=next_step)
    return program, passphrase


def decrypt(encrypted: Path, decrypted: Path, *, variable: str, key_hint: str) -> None:
    """Write the content of `encrypted` to `decrypted`; an error leaves no file.

    Raises:
        UserError: no `gpg`, no passphrase, a wrong one, or a damaged file.
    """
    program, passphrase = check(encrypted.name, variable=variable, key_hint=key_hint)
    try:
        status = _run(program, encrypted, decrypted, passphrase, variable)
        if status is not None:
            raise _explained(status, encrypted, variable, key_hint)
    except BaseException:
        decrypted.unlink(missing_ok=True)
        raise


def _run(program: str, encrypted: Path, decrypted: Path, passphrase: str, variable: str) -> str | None:
    """The machine-readable status of gpg if it fails; None if it succeeds."""
    options = ("--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback")
    channels = ("--passphrase-fd", "0", "--status-fd", "1")
    files = ("--output", os.path.abspath(decrypted), "--decrypt", os.path.abspath(encrypted))
    with _own_home(program, variable) as environment:
        done = subprocess.run(
            [program, *options, *channels, *files],
            input=passphrase.encode() + b"\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    return None if done.returncode == 0 else done.stdout.decode("utf-8", errors="replace")


@contextlib.contextmanager
def _own_home(program: str, variable: str) -> Generator[dict[str, str]]:
    """The environment of a gpg with a home of its own and without the variable."""
    # Not in the stage's folder: the path of the agent's socket can have about 100 characters at most.
    with tempfile.TemporaryDirectory(prefix="gpg", ignore_cleanup_errors=True) as home:
        os.chmod(home, 0o700)
        environment = {name: value for name, value in os.environ.items() if name != variable} | {"GNUPGHOME": home}
        try:
            yield environment
        finally:
            control = shutil.which("gpgconf", path=os.path.dirname(program)) or shutil.which("gpgconf")
            if control is not None:  # without it the agent ends when its home is gone
                subprocess.run([control, "--kill", "gpg-agent"], env=environment, capture_output=True, check=False)


def _explained(status: str, encrypted: Path, variable: str, key_hint: str) -> UserError:
    name, again = encrypted.name, "download the file again"
    if "BAD_PASSPHRASE" in status:
        wanted = f"the passphrase of {name} in the environment variable {variable}"
        return UserError("no-access", wanted=wanted, got="a wrong one", next_step=key_hint)
    if "NODATA" in status:
        next_step = f"{again}; a pointer of Git LFS is not the file"
        wanted = f"a file encrypted by gpg: {name}"
        return UserError("wrong-format", wanted=wanted, got="something else", next_step=next_step)
    if "DECRYPTION_FAILED" in status:
        wanted = f"a whole encrypted file {name} and its passphrase in {variable}"
        got = "a file that gpg cannot decrypt to its end"
        return UserError("damaged", wanted=wanted, got=got, next_step=f"{again}; {key_hint}")
    next_step = "try `gpg --version`; GnuPG 2.1 or newer needs room for temporary files"
    got = "a failure of gpg before it began"
    return UserError("failed", wanted=f"gpg to decrypt {name}", got=got, next_step=next_step)
