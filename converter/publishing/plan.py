"""What a push would do, as data: printed before it is done, and all that a dry run shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlxbert.files.output_file import format_bytes


@dataclass(frozen=True)
class PushPlan:
    """What goes where.

    Attributes:
        repo_id: the repository; `revision`: its branch, None: the default one.
        pull_request: propose it there and do not write to the branch.
        new: whether the repository is made, `private` or not; None: not known, because nobody was asked (a dry run).
        send: names of the files to send, and their sizes in bytes.
        unchanged: names of those that are there already, byte for byte.
        remove: names that an earlier push had left there and this model has not.
        kept_here: names in the directory that its manifest does not list, which are not sent.
        message: of the commit.
        card: the README.md that goes with it.
        unverified: why the model counts as not verified; None where it is.
        verdict: what was proven, one line.
    """

    repo_id: str
    revision: str | None
    pull_request: bool
    private: bool
    new: bool | None
    send: Mapping[str, int]
    unchanged: tuple[str, ...]
    remove: tuple[str, ...]
    kept_here: tuple[str, ...]
    message: str
    card: str = field(repr=False)
    unverified: str | None = None
    verdict: str = "VERIFIED"

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.send and not self.remove

    def lines(self, directory: Path) -> list[str]:
        """The plan for people."""
        state = {None: "", True: f", to be made {'private' if self.private else 'public'}", False: ", which is there"}
        where = f"a pull request to {self.repo_id}" if self.pull_request else self.repo_id
        branch = f", branch {self.revision}" if self.revision else ""
        rows = [("From", str(directory)), ("To", f"{where}{branch}{state[self.new]}"), ("Message", self.message)]
        rows += [("Send", f"{name}  {format_bytes(size)}") for name, size in self.send.items()]
        if self.unchanged:
            rows.append(("There", f"{len(self.unchanged)} files, the same bytes: {', '.join(self.unchanged)}"))
        rows += [("Remove", name) for name in self.remove]
        rows += [("Not sent", f"{name} (not in the manifest)") for name in self.kept_here]
        rows.append(("Parity", f"NOT VERIFIED: {self.unverified}" if self.unverified else self.verdict))
        return [f"{label:<10}{text}" for label, text in rows]


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        plan: what was to be done.
        status: "dry run"; "declined"; "unchanged": the same bytes are there already, nothing was written; "pushed";
            "recognised": written, though the Hub's answer to it got lost.
        commit: the commit that holds the files; None where nothing was written or looked at.
        url: where to look at it.
    """

    plan: PushPlan
    status: str
    commit: str | None = None
    url: str | None = None
