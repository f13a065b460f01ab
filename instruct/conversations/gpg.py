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

_BATCH = ("--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback")
_CHANNELS = ("--passphrase-fd", "0", "--status-fd", "1")


def check(name: str, *, variable: str, key_hint: str) -> tuple[str, str]:
    """The path of gpg, and the passphrase of the file `name` in the environment variable `variable`, before any work.

    Raises:
        UserError: no `gpg`, or no passphrase; `key_hint` is the next step of a user without it.
    """
    passphrase = os.environ.get(variable, "").strip()
    if not passphrase.isprintable() or not passphrase:
        wanted = f"the passphrase of {name} in the environment variable {variable}, one line"
        got = "several lines, or unprintable characters" if passphrase else "none"
        raise UserError("no-access", wanted=wanted, got=got, next_step=key_hint)
    program = shutil.which("gpg")
    if program is None:
        wanted, next_step = f"gpg to decrypt {name}", "install GnuPG 2.1 or newer, or give the file decrypted"
        raise UserError("not-installed", wanted=wanted, got="none on the PATH", next_step=next_step)
    return program, passphrase


@contextlib.contextmanager
def decrypted(encrypted: Path, scratch: Path, *, variable: str, key_hint: str) -> Generator[Path]:
    """The content of `encrypted`, as a file in the folder `scratch` that is removed afterwards.

    Raises:
        UserError: the errors of `check`, a wrong passphrase, or a damaged file.
    """
    program, passphrase = check(encrypted.name, variable=variable, key_hint=key_hint)
    readable = scratch / encrypted.name.removesuffix(".gpg")
    files = ("--output", os.path.abspath(readable), "--decrypt", os.path.abspath(encrypted))
    try:
        with _own_home(program, variable) as environment:
            done = subprocess.run(
                [program, *_BATCH, *_CHANNELS, *files],
                input=passphrase.encode() + b"\n",
                stdout=subprocess.PIPE,  # the machine-readable status
                stderr=subprocess.DEVNULL,
                env=environment,
                check=False,
            )
        if done.returncode != 0:
            wanted = f"the encrypted file {encrypted.name} and its passphrase in {variable}"
            raise _explained(done.stdout.decode("utf-8", errors="replace"), wanted, key_hint)
        yield readable
    finally:
        readable.unlink(missing_ok=True)


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


def _explained(status: str, wanted: str, key_hint: str) -> UserError:
    """The error that the status of a failed gpg means."""
    if "BAD_PASSPHRASE" in status:
        return UserError("no-access", wanted=wanted, got="a wrong passphrase", next_step=key_hint)
    if "NODATA" in status:
        next_step = "download the file again; a pointer of Git LFS is not the file"
        return UserError("wrong-format", wanted=wanted, got="a file that gpg did not encrypt", next_step=next_step)
    if "DECRYPTION_FAILED" in status:
        got, next_step = "a file that gpg cannot decrypt to its end", f"download the file again; {key_hint}"
        return UserError("damaged", wanted=wanted, got=got, next_step=next_step)
    next_step = "try `gpg --version`; GnuPG 2.1 or newer needs room for temporary files"
    return UserError("failed", wanted=wanted, got="a failure of gpg before it began", next_step=next_step)
