"""How many rows of a wide matrix are handled at once: on a CPU what fits into its cache, on a GPU much more."""

from __future__ import annotations

import torch

GPU_ELEMENTS = 2**25
"""On a GPU every further call costs more than the memory of 128 MB in float32."""


def rows_at_once(elements: int, columns: int, device: torch.device) -> int:
    """Rows of a chunk, at least one.

    Args:
        elements: of a chunk on a CPU.
        columns: of the matrix.
        device: where it is.
    """
    return max(1, (elements if device.type == "cpu" else GPU_ELEMENTS) // columns)
