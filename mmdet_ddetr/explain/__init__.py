"""What a prediction looked at: recording, figures and an interactive page."""

from .explanation import Detection, Explanation, Look, explain, explanation_of
from .record import DenseAttention, Recording, SampledAttention, attentions, record

__all__ = [
    'DenseAttention',
    'Detection',
    'Explanation',
    'Look',
    'Recording',
    'SampledAttention',
    'attentions',
    'explain',
    'explanation_of',
    'record',
]
