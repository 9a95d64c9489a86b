"""What another package adds to parelu: an extension of each kind, each in one file."""
