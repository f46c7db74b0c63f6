"""The two ways a command can fail, and the exit status of each."""

from __future__ import annotations

from collections.abc import Iterable


class EdgepruneError(Exception):
    """Base of every error this project raises on purpose; `exit_status` is what the command ends with."""

    exit_status = 3


class UserError(EdgepruneError):
    """The caller's mistake: the message says what is wrong and what would be right.

    Several mistakes found together are one error, one line each:

    >>> print(UserError(["sparsity 1.7 is not in [0, 1)", "no target 'ios'"]))
    sparsity 1.7 is not in [0, 1)
    no target 'ios'
    """

    exit_status = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ToolError(EdgepruneError):
    """A tool underneath (coremltools, litert-torch, ...) failed on input that looked right."""
