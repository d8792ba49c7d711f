"""The warp of `augment` for a CPU, as loops that numba compiles: three times as fast as with torch's operations.

Imported where numba is installed (the extra `cpu`). Compiled on first use, which takes seconds; nothing is written to the disk.
Nothing but multiply-and-add may be fused or reordered: the same pixels on every run.
"""

import numpy as np
from numba import njit  # pyright: ignore[reportMissingImports]

COPIED, STRAIGHT, TURNED = range(3)  # flips at most; rows stay rows; any affine matrix

_LOOP = njit(error_model="numpy", fastmath={"contract"}, nogil=True)


@_LOOP
def warp_all(x: np.ndarray, inverse: np.ndarray, kind: np.ndarray, out: np.ndarray) -> None:
    """Reads each image at inverse @ (column, row, 1); Catmull-Rom, mirrored about the centres of the edge pixels.

    Args:
        x: float32 (N, C, H, W), contiguous, H and W at least 2.
        inverse: float64 (N, 3, 3).
        kind: int64 (N,): COPIED (the matrix is the identity or a flip onto itself), STRAIGHT or TURNED.
        out: float32 (N, C, H, W), contiguous; filled.
    """
    for n in range(len(x)):
        if kind[n] == COPIED:
            _copy(x[n], inverse[n], out[n])
        elif kind[n] == STRAIGHT:
            _straight(x[n], inverse[n], out[n])
        else:
            _turned(x[n], inverse[n], out[n])


@_LOOP
def _copy(x: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> None:
    channels, height, width = x.shape
    for channel in range(channels):
        for row in range(height):
            line, new = x[channel, row if inverse[1, 1] > 0 else height - 1 - row], out[channel, row]
            if inverse[0, 0] > 0:
                for i in range(width):
                    new[i] = line[i]
            else:
                for i in range(width):
                    new[i] = line[width - 1 - i]


@_LOOP
def _weights(t):  # noqa: ANN001, ANN202 - of numba's own types
    """The weights of pixels k - 1, k, k + 1, k + 2 for the place t in [0, 1) between k and k + 1, float32."""
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    square = t * t
    cube = square * t
    return (
        square - half * (cube + t),
        (one + half) * cube - (two + half) * square + one,
        two * square - (one + half) * cube + half * t,
        half * (cube - square),
    )


@_LOOP
def _mirrored(pixel, side):  # noqa: ANN001, ANN202
    while not 0 <= pixel < side:  # once or twice; a remainder would take longer
        pixel = -pixel if pixel < 0 else 2 * (side - 1) - pixel
    return pixel


@_LOOP
def _straight(x: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> None:
    """Each new row is a sum of four old ones, each of its pixels a sum of four in there."""
    channels, height, width = x.shape
    pixels = np.empty((4, width), np.int64)
    weights = np.empty((4, width), np.float32)
    for column in range(width):
        at = inverse[0, 0] * column + inverse[0, 2]
        whole = np.floor(at)
        for tap, weight in enumerate(_weights(np.float32(at - whole))):
            pixels[tap, column] = _mirrored(np.int64(whole) - 1 + tap, width)
            weights[tap, column] = weight
    p0, p1, p2, p3 = pixels
    x0, x1, x2, x3 = weights
    line = np.empty(width, np.float32)
    for row in range(height):
        at = inverse[1, 1] * row + inverse[1, 2]
        whole = np.floor(at)
        first = np.int64(whole) - 1
        y0, y1, y2, y3 = _weights(np.float32(at - whole))
        r0, r1, r2, r3 = (
            _mirrored(first, height),
            _mirrored(first + 1, height),
            _mirrored(first + 2, height),
            _mirrored(first + 3, height),
        )
        for channel in range(channels):
            l0, l1, l2, l3 = x[channel, r0], x[channel, r1], x[channel, r2], x[channel, r3]
            for i in range(width):
                line[i] = y0 * l0[i] + y1 * l1[i] + y2 * l2[i] + y3 * l3[i]
            new = out[channel, row]
            for i in range(width):
                new[i] = x0[i] * line[p0[i]] + x1[i] * line[p1[i]] + x2[i] * line[p2[i]] + x3[i] * line[p3[i]]


@_LOOP
def _turned(x: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> None:
    """Each new pixel is a sum of 16. Indices are unsigned, for which no wrapping round is compiled."""
    channels, height, width = x.shape
    old, new = x.reshape(-1), out.reshape(-1)
    plane, line, one, two, three = np.uint64(height * width), np.uint64(width), np.uint64(1), np.uint64(2), np.uint64(3)
    for row in range(height):
        for column in range(width):
            u = inverse[0, 0] * column + (inverse[0, 1] * row + inverse[0, 2])
            v = inverse[1, 0] * column + (inverse[1, 1] * row + inverse[1, 2])
            left, top = np.floor(u), np.floor(v)
            x0, x1, x2, x3 = _weights(np.float32(u - left))
            y0, y1, y2, y3 = _weights(np.float32(v - top))
            k, m = np.int64(left) - 1, np.int64(top) - 1
            to = np.uint64(row * width + column)
            if k >= 0 and m >= 0 and k + 3 < width and m + 3 < height:
                a = np.uint64(m * width + k)
                for _ in range(channels):
                    b = a + line
                    c = b + line
                    d = c + line
                    new[to] = (
                        y0 * (x0 * old[a] + x1 * old[a + one] + x2 * old[a + two] + x3 * old[a + three])
                        + y1 * (x0 * old[b] + x1 * old[b + one] + x2 * old[b + two] + x3 * old[b + three])
                        + y2 * (x0 * old[c] + x1 * old[c + one] + x2 * old[c + two] + x3 * old[c + three])
                        + y3 * (x0 * old[d] + x1 * old[d + one] + x2 * old[d + two] + x3 * old[d + three])
                    )
                    a += plane
                    to += plane
            else:
                columns = (
                    _mirrored(k, width),
                    _mirrored(k + 1, width),
                    _mirrored(k + 2, width),
                    _mirrored(k + 3, width),
                )
                rows = (
                    _mirrored(m, height),
                    _mirrored(m + 1, height),
                    _mirrored(m + 2, height),
                    _mirrored(m + 3, height),
                )
                for channel in range(channels):
                    value = np.float32(0)
                    for y, at in zip((y0, y1, y2, y3), rows):  # noqa: B905 - numba's zip knows no strict
                        here = x[channel, at]
                        value += y * (
                            x0 * here[columns[0]]
                            + x1 * here[columns[1]]
                            + x2 * here[columns[2]]
                            + x3 * here[columns[3]]
                        )
                    new[to] = value
                    to += plane
