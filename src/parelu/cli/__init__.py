"""The command line; it calls the API only."""
