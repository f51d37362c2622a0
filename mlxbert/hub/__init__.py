"""Models on the Hugging Face Hub: only the files that are needed, all of one commit, in the Hub's own cache."""

from mlxbert.hub.download import HubError, Snapshot, snapshot

__all__ = ["HubError", "Snapshot", "snapshot"]
