"""What the dense attentions ask of their arguments."""


def check_heads(attention: object, embed_dims: int, num_heads: int, batch_first: bool) -> None:
    """Refuse heads of no whole number of channels, and inputs with the sequence first.

    Args:
        attention: that has the arguments, for the message.

    Raises:
        ValueError: names the argument.
    """
    if num_heads < 1 or embed_dims % num_heads:
        raise ValueError(f'embed_dims must be divisible by num_heads, got {embed_dims=}, {num_heads=}')
    if not batch_first:
        raise ValueError(f'batch_first must be True: {type(attention).__name__} reads [B, Q, C]')
