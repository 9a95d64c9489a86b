"""The exceptions that are meant for people; a message is one line that names the thing and the fix."""


class UserError(ValueError):
    """Bad input: one line that names what is wrong and what to do. The command line exits with code 2."""


class ProtocolError(ValueError):
    """The peer sent what the protocol does not allow; the connection ends."""


class Refused(ProtocolError):
    """The peer asked for what this client may not have: its budget is used up, or it is barred."""


class NoResult(ProtocolError):
    """What an inference revealed cannot be the network's answer. All of its messages have passed before."""


def shown(text: str, longest: int = 120) -> str:
    """What a file or a library says, fit for a message: printable, on one line, cut off where it is long."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "�" for c in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
