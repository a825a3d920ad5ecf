"""Back ends that tests run by: the native one only where its kernels were built."""

import pytest

from recsys_embed.native.library import load

needs_kernels = pytest.mark.skipif(isinstance(load(), str), reason="no native back end")
NATIVE = pytest.param("native", marks=needs_kernels)
EVERY = ["reference", NATIVE, "fused"]
