# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The C library's memory, set up for training: what a step frees, the next one takes again."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names: M_...


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of giving it back; tell whether it took the setting.

    A gradient step allocates tensors of 10 to 150 MB. By default each of them is mapped anew and zeroed page by page
    when first written, which took a quarter of the `fosp` preset's step. The process then holds its peak until it
    ends: for programs that train, not for nodes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library: slower, that is all
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30) and mallopt(_TRIM_THRESHOLD, -1))
