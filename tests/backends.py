"""Back ends that tests run by: the native one only where its kernels were built."""

import pytest

from recsys_embed.native.library import load

NATIVE = pytest.param("native", marks=pytest.mark.skipif(isinstance(load(), str), reason="no native back end"))
EVERY = ["reference", NATIVE, "fused"]
