"""The one exception that is addressed to the user."""


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line. The command line prints it and exits with 2."""
