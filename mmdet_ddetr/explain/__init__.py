"""What a prediction looked at: recording, figures and an interactive page."""

from .explanation import Detection, Explanation, Look, explain, explanation_of
from .record import DenseAttention, Recording, SampledAttention, attentions, check_recordable, record

__all__ = [
    'DenseAttention',
    'Detection',
    'Explanation',
    'Look',
    'Recording',
    'SampledAttention',
    'attentions',
    'check_recordable',
    'explain',
    'explanation_of',
    'record',
]
