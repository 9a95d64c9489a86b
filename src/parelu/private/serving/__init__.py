"""The deployed pair: sessions, server, client, and stocks of material made ahead."""
