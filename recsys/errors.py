"""Errors: the one exception that a job shows as a sentence instead of a traceback."""


class UserError(ValueError):
    """An error that the user can mend.

    Its text says what was given, what was expected, and which file, column, row or key to change.
    `recsys.job.run_job` prints the text alone and ends with code 1. Every other exception is a fault
    of ours and keeps its traceback.
    """


class StorageError(UserError, OSError):
    """A file could not be written or read; says which, and how much space is needed and free."""


class NonFiniteError(UserError, FloatingPointError):
    """Training diverged: a loss or a gradient is not a finite number; says which setting to lower."""
