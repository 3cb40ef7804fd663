"""learnreg: classical and learned medical image registration on one differentiable library.

``__init__.pyi`` lists what is public. Names are imported when they are first used, so ``import learnreg`` is instant.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
