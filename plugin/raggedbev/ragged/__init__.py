"""Ragged batches: samples of different size in one padded tensor, and the helpers that work on them."""

from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.pack import combine_data

__all__ = ["RaggedBatch", "combine_data"]
