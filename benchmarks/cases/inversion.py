"""
The image that an update of one image gives back: ``python -m benchmarks.cases.inversion [-o FILE.png]``.

Four sites train the perceptron 2NN one step, each on one image. A row of the first layer's gradient is the image times
a number, and that number is in the gradient of the bias: their quotient is the image. From the masked update the
same quotient is noise; from the sum of all four, which secure sums show, it is a mixture. Without Redis; the secrets
are fixed, so that the figures are the same in each run.

Source:
    Phong et al. 2018, "Privacy-preserving deep learning via additively homomorphic encryption" (eprint 2017/715),
    section 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from benchmarks.harness.table import markdown
from fl_queue.aggregation.scales import choose_scales
from fl_queue.config import loading
from fl_queue.data.idx import read_idx
from fl_queue.protocol import crypto
from fl_queue.protocol.arrays import Tensor
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.secure import masks
from fl_queue.secure.ring import Accompanying, RingLayout, RingSum, Words
from fl_queue.tasks.mnist import TwoLayerPerceptron

SITES = ("site-1", "site-2", "site-3", "site-4")
_DATA = Path(__file__).parents[2] / "fl_queue/data"
_SIDE = 28
_SHOWN = 4
_WEIGHT, _BIAS = "hidden1.weight", "hidden1.bias"

Floats = NDArray[np.float64]


def images() -> Floats:
    """An image for each site, (sites, 784), in [0, 1]: the first of as many digits."""
    pixels = read_idx(_DATA / "train-images-idx3-ubyte.gz", 3)
    labels = read_idx(_DATA / "train-labels-idx1-ubyte.gz", 1)
    first = [int(np.flatnonzero(labels == digit)[0]) for digit in np.unique(labels)[: len(SITES)]]
    chosen = first + [index for index in range(len(labels)) if index not in first]
    return pixels[chosen[: len(SITES)]].reshape(len(SITES), -1).astype(np.float64) / 255


def updates(shown: Floats) -> list[dict[str, Tensor]]:
    """What each site's one step of SGD changes: tensors by name, float32."""
    config = loading.load("mnist-2nn", (), {})
    found = []
    for image in shown:
        torch.manual_seed(0)
        model = TwoLayerPerceptron(config).build_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        output = model(torch.tensor(image[None], dtype=torch.float32))
        functional.cross_entropy(output, torch.tensor([3])).backward()
        optimizer.step()
        after = model.state_dict()
        found.append({name: (after[name] - before[name]).numpy() for name in before})
    return found


def layout_of(update: dict[str, Tensor]) -> RingLayout:
    """The ring of 64 bits of a model."""
    specs = [TensorSpec(name, value.shape, "parameter") for name, value in sorted(update.items())]
    scales = choose_scales(len(SITES), 1, {"parameter": 64.0})
    return RingLayout(Manifest(tuple(specs)), scales, 1, 64)


def masked(words: dict[str, Words]) -> dict[str, Words]:
    """Each site's vector as it leaves it."""
    context = bytes(32)
    keys = {site: masks.mask_key(site.encode().ljust(32, b"."), context) for site in SITES}
    public = {site: crypto.public_half(key) for site, key in keys.items()}
    found = {}
    for site, sent in words.items():
        own = Words(*(part.copy() for part in sent))
        others = {other: key for other, key in public.items() if other != site}
        secret = site.encode().rjust(32, b".")
        masks.apply(masks.masks_of(site, keys[site], secret, others, context), *own)
        found[site] = own
    return found


def image_in(layout: RingLayout, words: Words) -> Floats:
    """The quotient of the row of the first layer with the largest bias, (784,)."""
    total = RingSum(layout)
    total.add_words(words)
    tensors = total.signed().tensors
    weight, bias = (tensors[name].astype(np.float64) for name in (_WEIGHT, _BIAS))
    row = int(np.abs(bias).argmax())
    quotient: Floats = weight[row] / bias[row]
    return quotient


def correlation(one: Floats, other: Floats) -> float:
    """Pearson's, without its sign."""
    return abs(float(np.corrcoef(one, other)[0, 1]))


def _words(layout: RingLayout, update: dict[str, Tensor]) -> Words:
    """The vector of an update before it is masked."""
    return layout.sent_words(lambda spec: [update[spec.name].reshape(-1)], Accompanying(1, {}, {}))


def _as_floats(words: Words) -> Floats:
    found: Floats = words.values.view(np.int64).astype(np.float64)
    return found


def report(output: Path | None = None) -> str:
    """The table. Args: ``output``: a picture of the images that each way gives back."""
    shown = images()
    trained = updates(shown)
    layout = layout_of(trained[0])
    clear = {site: _words(layout, own) for site, own in zip(SITES, trained, strict=True)}
    hidden = masked(clear)
    total = RingSum(layout)
    for words in clear.values():
        total.add_words(words)
    first = SITES[0]
    ways = {
        "one update in clear": clear[first],
        "the same update, masked": hidden[first],
        "the sum of four updates": total.words,
    }
    rows, pictures = [], [shown[0]]
    for name, words in ways.items():
        found = image_in(layout, words)
        pictures.append(found)
        same = correlation(_as_floats(words), _as_floats(clear[first]))
        rows.append([name, f"{correlation(found, shown[0]):.2f}", f"{same:.3f}"])
    if output is not None:
        _draw(pictures, output)
    head = ("what is read", "correlation of the image got back", "correlation with the update")
    return markdown(head, rows)


def _draw(pictures: list[Floats], path: Path) -> None:
    """The images side by side, each from its least to its largest value."""
    tiles = []
    for pixels in pictures:
        low, high = pixels.min(), pixels.max()
        grey = ((pixels - low) / (high - low) * 255).astype(np.uint8).reshape(_SIDE, _SIDE)
        tiles.append(np.pad(np.kron(grey, np.ones((6, 6), np.uint8)), 6, constant_values=255))
    Image.fromarray(np.hstack(tiles)).save(path)


def main() -> None:
    """Print the table, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="makes no difference: it takes seconds"
    )
    parser.add_argument("-o", "--output", type=Path, help="PNG of the images")
    print(report(parser.parse_args().output))


if __name__ == "__main__":
    main()
