"""Methods: one file a paper, the folder is the registry."""

from parelu.methods.base import Job, Method, Search, Workbench, methods, parse_budget

__all__ = ["Job", "Method", "Search", "Workbench", "methods", "parse_budget"]
