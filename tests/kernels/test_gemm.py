"""Matrix products against the NumPy reference, and a row against itself in batches and on several threads."""

import numpy as np
import pytest

from deepseek.kernels import gemm, reference

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int8])


def random_matrices(dtype, *shape, seed=0):
    """(matrices (E, N, K) as stored in `dtype`, scales (E, N))."""
    generator = np.random.default_rng(seed)
    w_ENK = generator.standard_normal(shape).astype(np.float32)
    if dtype == np.int8:
        return generator.integers(-127, 128, shape, np.int8), generator.uniform(0.01, 0.02, shape[:2]).astype(
            np.float32
        )
    stored = (w_ENK.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else w_ENK
    return stored, np.ones(shape[:2], np.float32)


def random_rows(rows, columns):
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


@every_dtype
@pytest.mark.parametrize("n, k, rows", [(64, 96, 1), (67, 33, 5), (3, 7, 9), (128, 64, 4), (1, 1, 1), (520, 200, 23)])
def test_a_product_equals_the_reference(dtype, n, k, rows):
    (w_ENK, scale_EN), x_RK, ends = random_matrices(dtype, 1, n, k), random_rows(rows, k), np.array([rows])
    expected = reference.grouped_gemm(w_ENK, scale_EN, x_RK, ends)
    for num_threads in (1, 2):
        np.testing.assert_allclose(gemm.grouped_gemm(w_ENK, scale_EN, x_RK, ends, num_threads), expected, atol=2e-4)


@every_dtype
def test_each_group_of_rows_has_its_own_matrix(dtype):
    (w_ENK, scale_EN), x_RK = random_matrices(dtype, 4, 10, 24), random_rows(7, 24)
    ends = np.array([2, 2, 6, 7])  # the second has no rows
    expected = reference.grouped_gemm(w_ENK, scale_EN, x_RK, ends)
    np.testing.assert_allclose(gemm.grouped_gemm(w_ENK, scale_EN, x_RK, ends, 1), expected, atol=1e-4)


@every_dtype
def test_a_row_is_bit_identical_in_any_batch_and_on_any_number_of_threads(dtype):
    (w_ENK, scale_EN), x_RK = random_matrices(dtype, 1, 1030, 200), random_rows(11, 200)
    alone = np.concatenate([gemm.grouped_gemm(w_ENK, scale_EN, x_RK[r : r + 1], np.array([1]), 1) for r in range(11)])
    for num_threads in (1, 2, 3):
        for rows in (1, 2, 3, 4, 7, 8, 11):
            batch = gemm.grouped_gemm(w_ENK, scale_EN, x_RK[:rows], np.array([rows]), num_threads)
            assert np.array_equal(batch, alone[:rows])


def test_nan_propagates():
    w_ENK, scale_EN = random_matrices(np.float32, 1, 8, 16)
    x_RK = random_rows(1, 16)
    x_RK[0, 3] = np.nan
    assert np.isnan(gemm.grouped_gemm(w_ENK, scale_EN, x_RK, np.array([1]), 1)).all()
