"""Numba kernels, one file beside each file of definitions. They import nothing of refsnn and call no other file."""
