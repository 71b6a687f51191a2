"""Blur a photograph and find its edges: `python examples/filter_photo.py [PHOTO] [OUTPUT.ppm]`.

A photograph is read by Pillow. Without one the program draws a picture of its own and needs NumPy alone.
"""

import sys
from pathlib import Path

import numpy as np

import fastconv


def picture(path: str | None) -> np.ndarray:
    """Red, green and blue as float32 (3, H, W) in 0..1."""
    if path is not None:
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / np.float32(255)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    y, x = np.mgrid[:240, :320].astype(np.float32)
    disc = np.float32(np.hypot(x - 200, y - 110) < 70)
    stripes = np.float32((x + y) % 40 < 20)
    return np.stack([disc, 0.5 * stripes + 0.5 * disc, y / 240]).astype(np.float32)


def gaussian(size: int, sigma: float) -> np.ndarray:
    """A normalised Gaussian, (size, size)."""
    axis = np.arange(size) - (size - 1) / 2
    line = np.exp(-(axis**2) / (2 * sigma**2))
    line /= line.sum()
    return np.outer(line, line).astype(np.float32)


def main() -> None:
    """Filter, and write the picture, its blur and its edges side by side."""
    image = picture(sys.argv[1] if len(sys.argv) > 1 else None)
    output = Path(sys.argv[2] if len(sys.argv) > 2 else "filtered.ppm")

    # The same filter for each colour: three groups of one channel. Arrays without a batch axis are taken as they are.
    blur = np.repeat(gaussian(11, 2.5)[np.newaxis, np.newaxis], 3, axis=0)
    soft = fastconv.conv2d(image, blur, padding="same", padding_mode="reflect", groups=3)

    # Two filters of the grey picture in one call.
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image, 1)[np.newaxis]
    sobel = np.outer([1, 2, 1], [-1, 0, 1]).astype(np.float32)
    slopes = fastconv.conv2d(grey, np.stack([sobel, sobel.T])[:, np.newaxis], padding=1, padding_mode="replicate")
    edges = np.broadcast_to(np.hypot(*slopes) / 4, image.shape)

    sheet = np.concatenate([image, soft, edges], axis=2).clip(0, 1)
    height, width = sheet.shape[1:]
    pixels = (np.moveaxis(sheet, 0, -1) * 255).round().astype(np.uint8)
    output.write_bytes(b"P6 %d %d 255\n" % (width, height) + pixels.tobytes())
    print(f"wrote {output}: the picture, blurred, and its edges")


if __name__ == "__main__":
    main()
