from .budget import Budget
from .timed import TimedTrainLoop

__all__ = ['Budget', 'TimedTrainLoop']
