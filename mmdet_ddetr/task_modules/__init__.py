from .hungarian_assigner import HungarianAssigner, Match
from .match_costs import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost, MatchCost, Targets
from .task_aligned import task_aligned_match

__all__ = [
    'BBoxL1Cost',
    'ClassificationCost',
    'FocalLossCost',
    'HungarianAssigner',
    'IoUCost',
    'Match',
    'MatchCost',
    'Targets',
    'task_aligned_match',
]
