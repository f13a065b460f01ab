"""How tests look at errors: by their code and by values in their fields, not by their sentences."""

import contextlib
from collections.abc import Generator

import pytest

from common.errors import Code, UserError


@contextlib.contextmanager
def refuses(code: Code, *, wanted: str = "", got: str = "", next_step: str = "") -> Generator[list[UserError]]:
    """The block raises a UserError of this code, whose fields contain these values: names, numbers, paths.

    Yields:
        a list that holds the error after the block.
    """
    caught: list[UserError] = []
    with pytest.raises(UserError) as raised:
        yield caught
    error = raised.value
    caught.append(error)
    assert error.code == code, f"{error.code}: {error}"
    for field, value in (("wanted", wanted), ("got", got), ("next_step", next_step)):
        assert value in getattr(error, field), f"{field} of {error}"
