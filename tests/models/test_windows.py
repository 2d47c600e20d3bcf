"""Window partitioning, position index and masks, compared with loops over tokens."""

import itertools

import pytest
import torch

from swin_lightning.models.windows import (
    fit_window,
    padded_size,
    relative_position_index,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

SIZES = [(1, 1), (3, 2), (4, 4), (5, 4), (7, 7), (8, 8), (10, 13), (14, 7), (13, 16)]
MASK_CASES = list(itertools.product(SIZES, (2, 4, 7), (False, True)))


@pytest.mark.parametrize("window", [(1, 1), (2, 3), (4, 4), (7, 7), (3, 5)])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("columns", [1, 2, 4])
def test_window_reverse_inverts_window_partition(window, rows, columns):
    H, W = rows * window[0], columns * window[1]
    x = torch.randn(2, H, W, 3)
    windows = window_partition(x, window)
    assert windows.shape == (2 * rows * columns, window[0] * window[1], 3)
    assert torch.equal(window_reverse(windows, window, (H, W)), x)
    assert torch.equal(window_partition(window_reverse(windows, window, (H, W)), window), windows)


def test_window_partition_is_row_major():
    x = torch.arange(4 * 6).view(1, 4, 6, 1)
    windows = window_partition(x, (2, 3)).squeeze(-1)
    assert windows.tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]


def test_relative_position_index_of_a_two_by_two_window():
    # tokens (0,0) (0,1) (1,0) (1,1); row (dy + 1) * 3 + dx + 1 with the offset of query minus key
    assert relative_position_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize("M", [3, 4, 7])
def test_relative_position_index_is_a_bijection_from_offsets(M):
    index = relative_position_index(M)
    seen = {}
    for (q, (yq, xq)), (k, (yk, xk)) in itertools.product(enumerate(itertools.product(range(M), range(M))), repeat=2):
        seen.setdefault((yq - yk, xq - xk), set()).add(int(index[q, k]))
    assert all(len(rows) == 1 for rows in seen.values())  # one row per offset
    rows = {offset: rows.pop() for offset, rows in seen.items()}
    assert sorted(rows.values()) == list(range((2 * M - 1) ** 2))  # all rows are used
    assert rows[2, 1] != rows[1, 2]  # a plain sum dy + dx would give the same row
    assert rows[0, 0] == ((2 * M - 1) ** 2 - 1) // 2


@pytest.mark.parametrize(("M", "h", "w"), [(4, 4, 4), (4, 2, 3), (7, 3, 3), (7, 1, 5), (7, 1, 1)])
def test_clamped_window_uses_the_centre_of_the_table(M, h, w):
    corner = relative_position_index(M).view(M, M, M, M)[:h, :w, :h, :w]
    rows, columns = corner // (2 * M - 1), corner % (2 * M - 1)
    assert set(rows.flatten().tolist()) == set(range(M - h, M + h - 1))
    assert set(columns.flatten().tolist()) == set(range(M - w, M + w - 1))
    for yq, xq, yk, xk in itertools.product(range(h), range(w), range(h), range(w)):
        assert corner[yq, xq, yk, xk] == (yq - yk + M - 1) * (2 * M - 1) + (xq - xk + M - 1)


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((14, 14), (7, 7), (3, 3)),
        ((7, 14), (7, 7), (0, 3)),  # independently per axis
        ((14, 7), (7, 7), (3, 0)),
        ((7, 7), (7, 7), (0, 0)),
        ((4, 20), (4, 7), (0, 3)),
        ((3, 5), (3, 5), (0, 0)),
    ],
)
def test_axis_not_longer_than_the_window_is_clamped_and_not_shifted(size, window, shift):
    assert fit_window(size, 7, 3) == (window, shift)


@pytest.mark.parametrize(("size", "window_size", "shifted"), MASK_CASES)
def test_shift_adds_no_windows(size, window_size, shifted):
    # without the cyclic shift, shifted windows would need ceil(n / M) + 1 windows per axis
    window, shift = fit_window(size, window_size, window_size // 2 if shifted else 0)
    mask = shifted_window_mask(size, window, shift)
    n_windows = -(-size[0] // window[0]) * -(-size[1] // window[1])
    H, W = padded_size(size, window)
    assert (H * W) // (window[0] * window[1]) == n_windows
    assert mask is None or mask.shape == (n_windows, window[0] * window[1], window[0] * window[1])


def rolled_tokens(size, window, shift):
    """Per window after padding and shift, its tokens: position in the shifted map, in the padded map, not padding."""
    H, W = padded_size(size, window)
    windows = {}
    for i, j in itertools.product(range(H), range(W)):
        y, x = (i + shift[0]) % H, (j + shift[1]) % W
        windows.setdefault((i // window[0], j // window[1]), []).append((i, j, y, x, y < size[0] and x < size[1]))
    return [windows[key] for key in sorted(windows)]


@pytest.mark.parametrize(("size", "window_size", "shifted"), MASK_CASES)
def test_mask_allows_attention_between_tokens_that_were_neighbours_before_the_shift(size, window_size, shifted):
    window, shift = fit_window(size, window_size, window_size // 2 if shifted else 0)
    mask = shifted_window_mask(size, window, shift)
    for n, tokens in enumerate(rolled_tokens(size, window, shift)):
        for (a, (i1, j1, y1, x1, real1)), (b, (i2, j2, y2, x2, real2)) in itertools.product(
            enumerate(tokens), repeat=2
        ):
            allowed = True if mask is None else bool(mask[n, a, b])
            if real1 and real2:  # same offset before and after the shift
                assert allowed == ((y1 - y2, x1 - x2) == (i1 - i2, j1 - j2))
            elif real1 != real2:
                assert not allowed


@pytest.mark.parametrize(("size", "window_size", "shifted"), MASK_CASES)
def test_mask_is_symmetric_with_true_diagonal(size, window_size, shifted):
    window, shift = fit_window(size, window_size, window_size // 2 if shifted else 0)
    mask = shifted_window_mask(size, window, shift)
    if mask is not None:
        assert mask.dtype == torch.bool
        assert torch.equal(mask, mask.transpose(1, 2))
        assert mask.diagonal(dim1=1, dim2=2).all()  # including padding: no softmax row is empty


@pytest.mark.parametrize(("size", "window_size", "shifted"), MASK_CASES)
def test_mask_is_none_without_padding_and_shift(size, window_size, shifted):
    window, shift = fit_window(size, window_size, window_size // 2 if shifted else 0)
    mask = shifted_window_mask(size, window, shift)
    padding = any(n % w for n, w in zip(size, window, strict=True))
    wrapped = shifted and any(n > window_size for n in size)
    assert (mask is not None) == (padding or wrapped)
    assert mask is None or not mask.all()
