"""CamemBERT's options, and mistakes with them: RoBERTa's, which it computes as."""

from tests.support.family.roberta import MUTATIONS, VARIANTS

__all__ = ["MUTATIONS", "VARIANTS"]
