"""Concurrent calls of the C++ core from many Python threads give the results of serial calls; sanitize.sh finds races.

NumPy only: importing PyTorch under a sanitizer takes minutes.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

native = pytest.importorskip("fastdm._native")

RECORDS = np.random.default_rng(0).integers(0, 256, (400, 3, 16, 16), dtype=np.uint8)
OFFSETS = np.arange(0, 401, 100)


def every_function(step: int, file: object) -> list[np.ndarray]:
    """The results of the core's functions for one step, each computed in more blocks of work than there are threads."""
    index = np.empty((4, 90), np.int64)
    native.draw(7, step, OFFSETS, np.arange(4), index)
    rows = index.ravel()
    images, read = np.empty((2, 360, 3, 16, 16), np.uint8)
    native.gather(RECORDS, rows, images)
    file.read(0, rows, read)  # type: ignore[attr-defined]
    floats = np.empty((360, 3, 16, 16), np.float32)
    native.gather(RECORDS, rows, floats, "planar", [0.1] * 3, [0.5] * 3)
    table = np.tile(np.float32([0.1, 0.5, 1.2, 1, -1, 0, 3, 0, 3, 1, 0.9, 1.1, 0.8, 0.6, 0, 0]), (4, 1))
    augmented, grad_images = np.empty((360, 16, 16, 3), np.float32), np.empty((360, 3, 16, 16), np.float32)
    group = np.repeat(np.arange(4), 90)
    native.dsa(RECORDS, table, group, rows, [0.1] * 3, [0.5] * 3, True, augmented)
    native.dsa_backward(augmented, table, group, True, grad_images)
    x = floats[:40].transpose(0, 2, 3, 1).copy()
    weight = np.linspace(-1, 1, 32 * 27, dtype=np.float32).reshape(32, 3, 3, 3)
    out, conv = np.empty((40, 8, 8, 32), np.float32), np.empty((40, 16, 16, 32), np.float32)
    mean, rstd = np.empty((2, 40, 32), np.float32)
    scale, shift, grad_scale, grad_shift = np.ones((4, 32), np.float32)
    native.conv_norm_relu_pool(x, weight, scale, shift, 1, 1e-5, out, conv, mean, rstd)
    grad_x, grad_weight = np.empty_like(x), np.empty((3, 3, 3, 32), np.float32)
    native.conv_norm_relu_pool_backward(
        out, x, conv, mean, rstd, weight, scale, shift, 1, grad_x, grad_weight, grad_scale, grad_shift
    )
    gradients = [grad_x, grad_weight, grad_scale, grad_shift]
    means = np.empty((2, 3 * 64), np.float32)
    native.norm_relu_pool_mean(floats, np.array([0, 100, 360]), None, None, 1e-5, False, means)
    return [index, images, read, floats, augmented, grad_images, out, conv, mean, rstd, *gradients, means]


def test_concurrent_callers_get_what_each_gets_alone(tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(RECORDS.tobytes())
    file = native.RecordFile(str(tmp_path / "records"))
    alone = [every_function(step, file) for step in range(12)]
    with ThreadPoolExecutor(6) as callers:
        together = list(callers.map(lambda step: every_function(step, file), range(12)))
    for expected, found in zip(alone, together, strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
