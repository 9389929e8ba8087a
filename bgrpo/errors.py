"""The one exception that means "the user can mend this": one clear line on the terminal, exit status 2."""


class UserError(Exception):
    """Something the user typed, wrote or provided is wrong.

    The message says what was wrong, where, and what would be right, in one line. Entry points print it without a
    traceback and exit with status 2 (see ``bgrpo.cli.main``).
    """


class DivergenceError(UserError):
    """Training diverged: the loss, the gradient or the KL left the range in which going on makes sense.

    The message says the step, the values, and what to try. Nothing is published or saved after it.
    """
