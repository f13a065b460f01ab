"""Decryption by the user's own `gpg`: one file, symmetric, with a passphrase from the environment.

The passphrase goes from the environment through a pipe into `gpg`, and nowhere else: no argument, no file, no error and
no log holds it, and neither `gpg` nor its agent inherits the variable. `gpg` runs in a home of its own, so that no key
ring, no configuration and no running agent of the user takes part. It knows no format of what is inside.
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
    """The program and the passphrase, before any work is done for them.

    Args:
        name: the encrypted file's, for errors.
        variable: environment variable that holds the passphrase.
        key_hint: a sentence that says where the user gets it.

    Raises:
        UserError: no `gpg`, or no passphrase.
    """
    passphrase = os.environ.get(variable, "").strip()
    if not passphrase.isprintable() or not passphrase:
        raise UserError(
            wanted=f"the passphrase of {name} in the environment variable {variable}, one line",
            got="several lines, or characters that none can type" if passphrase else "none",
            next_step=key_hint,
        )
    program = shutil.which("gpg")
    if program is None:
        raise UserError(
            wanted=f"the program gpg, to decrypt {name}",
            got="none on the PATH",
            next_step="Install GnuPG 2.1 or newer, or give the file decrypted.",
        )
    return program, passphrase


def decrypt(encrypted: Path, decrypted: Path, *, variable: str, key_hint: str) -> None:
    """Writes what is inside `encrypted` to `decrypted`; after an error nothing is there.

    Raises:
        UserError: what `check` refuses, a wrong passphrase, or a damaged file.
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
    """What gpg reports where it fails, in its own machine-readable words; None where it succeeds."""
    options = ("--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback")
    channels = ("--passphrase-fd", "0", "--status-fd", "1")
    with _own_home(program, variable) as environment:
        done = subprocess.run(
            [
                program,
                *options,
                *channels,
                "--output",
                os.path.abspath(decrypted),
                "--decrypt",
                os.path.abspath(encrypted),
            ],
            input=passphrase.encode() + b"\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    return None if done.returncode == 0 else done.stdout.decode("utf-8", errors="replace")


@contextlib.contextmanager
def _own_home(program: str, variable: str) -> Generator[dict[str, str]]:
    """The environment of a gpg that has a home of its own and does not see the variable."""
    # Not in the stage's folder: an agent's socket would lie there, whose path has about 100 characters at most.
    with tempfile.TemporaryDirectory(prefix="gpg", ignore_cleanup_errors=True) as home:
        os.chmod(home, 0o700)
        environment = {name: value for name, value in os.environ.items() if name != variable} | {"GNUPGHOME": home}
        try:
            yield environment
        finally:
            control = shutil.which("gpgconf", path=os.path.dirname(program)) or shutil.which("gpgconf")
            if control is not None:  # without it the agent ends by itself, when it finds its home gone
                subprocess.run([control, "--kill", "gpg-agent"], env=environment, capture_output=True, check=False)


def _explained(status: str, encrypted: Path, variable: str, key_hint: str) -> UserError:
    if "BAD_PASSPHRASE" in status:
        return UserError(
            wanted=f"the passphrase of {encrypted.name} in the environment variable {variable}",
            got="a wrong one",
            next_step=key_hint,
        )
    if "NODATA" in status:
        return UserError(
            wanted=f"a file encrypted by gpg: {encrypted.name}",
            got="something else",
            next_step="Download the file again; a pointer of Git LFS is not the file.",
        )
    if "DECRYPTION_FAILED" in status:
        return UserError(
            wanted=f"a whole encrypted file {encrypted.name} and its passphrase in {variable}",
            got="a file that gpg cannot decrypt to its end",
            next_step=f"Download the file again. {key_hint}",
        )
    return UserError(
        wanted=f"gpg to decrypt {encrypted.name}",
        got="a failure of gpg before it began",
        next_step="Try `gpg --version`; it takes GnuPG 2.1 or newer and room in the folder for temporary files.",
    )
