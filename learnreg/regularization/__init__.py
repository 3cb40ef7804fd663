"""Regularizers: ``(field, grid, weight=None) -> scalar``, in physical units, unchanged by resampling.

Beside them: consistency of two transforms, and the smoothing of fields that demons use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
