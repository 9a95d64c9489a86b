"""Methods: one file a paper, the folder is the registry."""
