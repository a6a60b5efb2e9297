from .hungarian_assigner import HungarianAssigner, Match
from .match_costs import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost, MatchCost, Targets

__all__ = [
    'BBoxL1Cost',
    'ClassificationCost',
    'FocalLossCost',
    'HungarianAssigner',
    'IoUCost',
    'Match',
    'MatchCost',
    'Targets',
]
