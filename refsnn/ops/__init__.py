"""Pure functions on arrays, each forward beside its backward: the definitions. Their kernels are in `kernels/`."""
