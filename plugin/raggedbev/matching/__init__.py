"""Matching: match costs, linear assignment of whole batches, and the matchers made of both."""

from raggedbev.matching.assignment import LinearAssignment, linear_assignment
from raggedbev.matching.costs import ClassCost
from raggedbev.matching.hungarian import HungarianMatcher2D, HungarianMatcher3D

__all__ = ["ClassCost", "HungarianMatcher2D", "HungarianMatcher3D", "LinearAssignment", "linear_assignment"]
