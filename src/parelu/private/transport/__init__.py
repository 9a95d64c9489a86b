"""Messages between the parties: framing and counting, shaped links, TLS."""
