from .local_backend import SafeLocalVisBackend

__all__ = ['SafeLocalVisBackend']
