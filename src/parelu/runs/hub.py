"""A candidate on the Hugging Face hub: its two files and its card, in a repository of the user's."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parelu.errors import UserError, shown
from parelu.network import storage

CARD = "README.md"


def push(folder: Path, repository: str, card: str, *, is_public: bool = False) -> str:
    """Put a candidate into a repository, which is made where there is none; its address.

    Args:
        repository: OWNER/NAME, or NAME of one's own.
        card: where the folder has no README.md.
        is_public: of a new repository: whether anybody may read the weights.

    Raises:
        UserError: the folder holds no candidate, huggingface_hub is missing, or the hub refuses.
    """
    if find_spec("huggingface_hub") is None:
        raise UserError("a push needs huggingface_hub; pip install 'parelu[hub]'")
    storage.read(folder, "candidate")
    hub: Any = importlib.import_module("huggingface_hub")
    own = folder / CARD
    contents: dict[str, Any] = {name: folder / name for name in ("candidate.json", "candidate.safetensors")}
    contents[CARD] = own if own.is_file() else card.encode()
    try:
        found = hub.HfApi().create_repo(repository, private=not is_public, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, what) for name, what in contents.items()]
        hub.HfApi().create_commit(found.repo_id, operations, commit_message=f"{folder.resolve().name}, made by parelu")
    except Exception as error:  # of the hub, of its client for HTTP, of names: they share no base
        reason = shown(str(error), 160) or type(error).__name__
        raise UserError(f"{repository} does not take the candidate ({reason}); log in with: hf auth login") from error
    return str(found)
