"""The classical solver: parametrizations, the descent, and stages from coarse to fine."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
