"""The exceptions that are meant for people; a message is one line that names the thing and the fix."""


class UserError(ValueError):
    """Bad input: one line that names what is wrong and what to do. The command line exits with code 2."""


class ProtocolError(ValueError):
    """The peer sent what the protocol does not allow; the connection ends."""
