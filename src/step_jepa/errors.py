"""The exceptions that are addressed to the user."""


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line. The command line prints it and exits with 2."""


class Interrupted(UserError):
    """Ctrl-C, and how to go on. The command line prints it and exits with 130."""
