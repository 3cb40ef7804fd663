"""Loops over voxels in machine code, one operation per file; see :mod:`learnreg.kernels.compiled`."""
