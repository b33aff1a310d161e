"""Matching: match costs, linear assignment of whole batches, and the matchers made of both."""

from raggedbev.matching.assignment import IndexPairs, LinearAssignment, linear_assignment
from raggedbev.matching.costs import ClassCost
from raggedbev.matching.fused import L1Term, MatchCost, OverlapTerm, match_cost
from raggedbev.matching.hungarian import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.matching.matchers import BoxCodeMatcher3D, OverlapAssignment, TermMatcher, TransFusionMatcher3D

__all__ = [
    "BoxCodeMatcher3D",
    "ClassCost",
    "HungarianMatcher2D",
    "HungarianMatcher3D",
    "IndexPairs",
    "L1Term",
    "LinearAssignment",
    "MatchCost",
    "OverlapAssignment",
    "OverlapTerm",
    "TermMatcher",
    "TransFusionMatcher3D",
    "linear_assignment",
    "match_cost",
]
