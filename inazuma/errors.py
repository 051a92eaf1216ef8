"""What can go wrong, in two kinds: the person's mistake and the run's failure.

The command line prints either as one line; it exits with 2 for the first and 1 for the second.
"""

from importlib.util import find_spec


class UserError(ValueError):
    """The input is wrong: the message says what, where (file, line or field) and what to do instead."""


class RunError(RuntimeError):
    """The work failed although the input was right (a full disk, a loss that is not finite, a damaged file)."""


def needs_extra(extra: str, *modules: str) -> None:
    """
    Raises:
        UserError: a module is missing, with the command that installs it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"{missing[0]} is not installed; pip install 'inazuma[{extra}]' brings it")
