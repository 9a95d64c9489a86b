"""The one exception for what a user did; its message names the thing and the fix."""


class UserError(ValueError):
    """Bad input: one line that names what is wrong and what to do. The command line exits with code 2."""
