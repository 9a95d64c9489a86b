"""What the other party did wrong."""


class ProtocolError(ValueError):
    """The peer sent what the protocol does not allow; the connection ends."""
