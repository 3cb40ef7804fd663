"""Regularizers: ``(field, grid, weight=None) -> scalar``, in physical units, nearly unchanged by resampling."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
