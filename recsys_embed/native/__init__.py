"""Our own CPU kernels, in C++: built with the package where a compiler is there, and optional everywhere."""
