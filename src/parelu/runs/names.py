"""How what a method asks of its run is named there: with the label of its entry at the end."""

from __future__ import annotations

import dataclasses

from parelu.errors import UserError
from parelu.methods.jobs import OUTSIDE, FromJob, FromSearch, Job, Search, Start
from parelu.network.metrics import Tags
from parelu.runs import mask_search
from parelu.runs.jobs import identity

LONGEST = 200  # bytes of a folder's name, of 255 on most systems: files in it have theirs and an ending
SHORTER = "give a shorter label, or fewer steps"


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of one entry of a run.

    Searches and networks that are no candidates are one thing under one name for all entries that ask for the same: two
    labels that differ in their finetuning share a search.

    Attributes:
        label: "" for none.
        teacher: what the architecture is called that teaches in the full-ReLU network's place; "" for none.
        known: what entries of the run have asked for, by its name there and its identity → its name in the run.
        candidates: name in the run → identity, of what its entries have asked for.
        own: name, as this entry's method has it → in the run.
    """

    label: str = ""
    teacher: str = ""
    known: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    candidates: dict[str, str] = dataclasses.field(default_factory=dict)
    own: dict[str, str] = dataclasses.field(default_factory=dict)

    def labelled(self, label: str) -> Names:
        """Of another entry of the same run."""
        return dataclasses.replace(self, label=label, own={})

    def of(self, name: str) -> str:
        """Raises `UserError` for one that is too long for a folder."""
        name = f"{name}-{self.label}" if self.label else name
        if len(name.encode()) > LONGEST:
            raise UserError(f"{name[:60]}… is a name of {len(name):,} letters, the longest is {LONGEST}; {SHORTER}")
        return name

    def of_search(self, search: Search) -> Search:
        search = dataclasses.replace(search, start=self._start(search.start), teacher=self._here(search.teacher))
        return dataclasses.replace(search, name=self._shared(search.name, mask_search.identity(search)))

    def of_job(self, job: Job) -> Job:
        """With its name in the run, and what it starts from by that; a candidate's note tells label and teacher.

        Its fresh weights are those of any label: entries that differ in one thing differ in nothing else.
        """
        job = dataclasses.replace(
            job, start=self._start(job.start), teacher=self._here(job.teacher), drawn_as=job.drawn_as or job.name
        )
        if job.role != "candidate":
            return dataclasses.replace(job, name=self._shared(job.name, identity(job)))
        self.own[job.name] = name = self.of(job.name)
        taught = f"taught by {self.teacher}" if job.teacher == OUTSIDE else ""
        named = dataclasses.replace(job, name=name, tags=noted(job.tags, self.label, taught))
        if self.candidates.setdefault(name, identity(named)) != identity(named):
            raise UserError(f"two entries make networks called {name!r}; give them other labels, or steps of their own")
        return named

    def _shared(self, name: str, identity: str) -> str:
        self.own[name] = self.known.setdefault((name, identity), self.of(name))
        return self.own[name]

    def _start(self, start: Start) -> Start:
        if isinstance(start, FromJob):
            return FromJob(self._here(start.name))
        if isinstance(start, FromSearch):
            return dataclasses.replace(start, search=self._here(start.search))
        return start

    def _here(self, name: str) -> str:
        return self.own.get(name, name)


def noted(tags: Tags, *words: str) -> Tags:
    """With these words in the note, unless they stand there."""
    there = tags.note.split(", ") if tags.note else []
    new = [word for word in words if word and word not in there]
    return dataclasses.replace(tags, note=", ".join([*there, *new])) if new else tags
