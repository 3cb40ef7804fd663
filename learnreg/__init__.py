"""learnreg: classical and learned medical image registration on one differentiable library.

``__init__.pyi`` lists what is public. Names are imported when they are first used, so ``import learnreg`` is instant.
"""

import os

import lazy_loader

# Waiting OpenMP threads must sleep, not spin: on a machine that runs anything else, a spinning pool
# makes a registration tens of times slower. It counts when torch is imported after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
