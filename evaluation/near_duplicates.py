"""Measure which altered copies of an image are found, and how many matches are no copies.

    python -m evaluation.near_duplicates

Alters images in the ways of `KINDS`, looks for each copy among all images, and does the same with two hashes
of the ImageHash library. Recall is the share of copies whose image is matched. Precision is the share of
matches, over the copies of all kinds, whose image is the original, or was judged by eye to be another copy of
it: CIFAR-10 holds many, `JUDGED_ALIKE`. "Strict" precision counts those as wrong too. The digits, drawings of
ten shapes, were not judged. Writes ``evaluation/results/near_duplicates.json`` and prints the table;
``--sheet FILE`` draws the most similar wrong pairs of CIFAR-10, to be judged.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from gen_unlearn.atomic import write_text
from gen_unlearn.data import load_digits_images
from gen_unlearn.image_tables import load_table
from gen_unlearn.near_duplicates import (
    DEFAULT_SIMILARITY,
    NearDuplicates,
    copy_similarity,
    find_near_duplicates,
)
from gen_unlearn.repro import numpy_generator, software_versions

ROOT = Path(__file__).parent
CIFAR = ROOT.parents[1] / "shared" / "data" / "cifar10-jpeg-train.parquet"
CIFAR_IMAGES = 10_000
THRESHOLDS = (0.7, 0.75, 0.8, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)

JUDGED_ALIKE = """
70 5130; 87 8357; 181 681 1861 5201 5371 7421 8961; 291 2771; 307 8407; 351 4121; 376 2886; 450 3040;
471 1731 2291 3571 8221 8501 9841; 590 2140 2770 9090; 613 7613; 664 2314; 758 5208; 806 8186; 905 9245;
956 7236; 1284 9724; 1376 9616; 1411 5601; 1424 4234; 1541 5291; 1786 2046; 1790 9490; 1863 4453; 1866 2136;
1914 9024; 2083 9813; 2093 5823; 2163 7523; 2189 8509; 2232 4052; 2257 2837; 2410 8350; 2551 5851; 2597 6777;
2740 9600; 2794 9304; 3058 6038; 3100 7520; 3309 4459; 3312 8562; 3371 9881; 3560 8030; 3684 5314; 3816 5566;
3913 7243; 4023 5373; 4256 9126; 4384 7734; 4595 8095; 4602 6562; 4674 5064; 4754 8494; 4764 8844; 4914 6814;
5026 9546; 5055 5565; 5206 8356; 5274 9984; 5376 6806; 5496 6696; 5953 6423; 6410 9170; 6736 9816; 7122 9822;
7160 7910; 7786 8926; 8882 9552; 8889 9309; 9710 9850
"""
"""Rows among the first 10,000 training images of CIFAR-10 that show the same picture, altered."""

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]
Search = Callable[[np.ndarray, np.ndarray], NearDuplicates]


def main() -> None:
    """Measure on every data set, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=400, help="altered images of each kind")
    parser.add_argument("--sheet", type=Path, help="draw the most similar wrong pairs of CIFAR-10 as PNG")
    parser.add_argument("--result", type=Path, default=ROOT / "results" / "near_duplicates.json")
    arguments = parser.parse_args()
    data: dict[str, np.ndarray] = {}
    if CIFAR.exists():
        data["CIFAR-10 (JPEG)"] = load_table(CIFAR, size=(32, 32), channels=3).all_images()[:CIFAR_IMAGES]
    else:
        sys.stdout.write(f"skipped CIFAR-10 (JPEG): {CIFAR.name} is not beside the repository\n")
    data["digits 8x8"] = load_digits_images().all_images()
    data["digits 32x32"] = load_digits_images(size=(32, 32)).all_images()
    copies_from = {name: copy_similarity(images) for name, images in data.items()}
    sys.stdout.write(f"a file counts as a copy from {json.dumps(copies_from)}\n")
    rows = []
    for name, images in data.items():
        alike = judged_alike(len(images)) if name.startswith("CIFAR") else np.arange(len(images))
        for method, search in SEARCHES.items():
            sheet = arguments.sheet if name.startswith("CIFAR") and method == "correlation" else None
            rows.append({"data": name, "images": len(images), "method": method})
            rows[-1] |= measure(search, images, alike, arguments.copies, sheet)
            sys.stdout.write(describe(rows[-1]))
    timing = time_searches()
    sys.stdout.write(f"{json.dumps(timing)}\n")
    result = {
        "command": f"python -m evaluation.near_duplicates --copies {arguments.copies}",
        "copy_similarity": copies_from,
        "versions": software_versions() | {"ImageHash": version("ImageHash")},
        "default_similarity": DEFAULT_SIMILARITY,
        "rows": rows,
        "timing": timing,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.result, json.dumps(result, indent=1) + "\n")


def jpeg(quality: int) -> Alteration:
    """Encode as JPEG and decode."""

    def alter(image: Image.Image, _: np.random.Generator) -> Image.Image:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=quality)
        return Image.open(encoded).convert(image.mode)

    return alter


def resize(factor: float) -> Alteration:
    """Resize by a factor and back."""

    def alter(image: Image.Image, _: np.random.Generator) -> Image.Image:
        size = round(image.width * factor), round(image.height * factor)
        return image.resize(size, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)

    return alter


def crop(keep: float) -> Alteration:
    """Keep a share of each side, anywhere in the image, and enlarge it to the size of the image."""

    def alter(image: Image.Image, draws: np.random.Generator) -> Image.Image:
        width, height = image.size
        left, top = draws.uniform(0, 1 - keep, 2) * image.size
        box = (left, top, left + keep * width, top + keep * height)
        return image.resize(image.size, Image.Resampling.BICUBIC, box=box)

    return alter


def brighten(factor: float) -> Alteration:
    """Multiply all values, and clip them."""
    return lambda image, _: ImageEnhance.Brightness(image).enhance(factor)


def mirror(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Swap left and right."""
    return ImageOps.mirror(image)


KINDS: dict[str, tuple[Alteration, ...]] = {
    "JPEG 95": (jpeg(95),),
    "JPEG 75": (jpeg(75),),
    "JPEG 50": (jpeg(50),),
    "half size": (resize(0.5),),
    "double size": (resize(2),),
    "mirrored": (mirror,),
    "crop 97 %": (crop(0.97),),
    "crop 95 %": (crop(0.95),),
    "crop 90 %": (crop(0.9),),
    "darker 15 %": (brighten(0.85),),
    "brighter 15 %": (brighten(1.15),),
    "half size, JPEG 75": (resize(0.5), jpeg(75)),
    "crop 95 %, JPEG 75": (crop(0.95), jpeg(75)),
    "mirrored, crop 90 %, brighter 15 %, JPEG 50": (mirror, crop(0.9), brighten(1.15), jpeg(50)),
}


def altered(images: np.ndarray, kind: str) -> np.ndarray:
    """Return a copy of each image, uint8 ``(n, height, width, channels)``, altered in the given way."""
    draws = numpy_generator(0, "near duplicates", kind)
    copies = []
    for image in images:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        for alter in KINDS[kind]:
            picture = alter(picture, draws)
        copies.append(np.asarray(picture).reshape(image.shape))
    return np.stack(copies)


def correlation(queries: np.ndarray, images: np.ndarray) -> NearDuplicates:
    """Search as the package does."""
    return find_near_duplicates(queries, images, THRESHOLDS[0])


def by_hash(hasher: Callable[[Image.Image], imagehash.ImageHash]) -> Search:
    """Search by a hash of the query, as it is and as a crop of 94 % in 9 places, each also mirrored.

    The similarity is the share of equal bits. A crop is padded with its own edges.
    """

    def bits(images: Iterable[np.ndarray]) -> np.ndarray:
        pictures = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images)
        return np.stack([hasher(picture).hash.ravel() for picture in pictures]) * np.float32(2) - 1

    def search(queries: np.ndarray, images: np.ndarray) -> NearDuplicates:
        hashes = bits(images).T
        similarity = np.zeros((len(queries), len(images)), dtype=np.float32)
        for variant in [queries, *padded(queries, 0.94)]:
            for image in (variant, variant[:, :, ::-1]):
                np.maximum(similarity, (1 + bits(image) @ hashes / len(hashes)) / 2, out=similarity)
        query, row = np.nonzero(similarity >= THRESHOLDS[0])
        return NearDuplicates(query, row, similarity[query, row].astype(np.float64))

    return search


def padded(queries: np.ndarray, scale: float) -> list[np.ndarray]:
    """Shrink the queries, and pad them with their edges to 9 positions in the full frame."""
    height, width = queries.shape[1:3]
    size = round(width * scale), round(height * scale)
    shrunk = np.stack([np.array(Image.fromarray(image.squeeze()).resize(size)) for image in queries])
    shrunk = shrunk.reshape(*shrunk.shape[:3], -1)
    down, across = height - size[1], width - size[0]
    places = [(round(down * y / 2), round(across * x / 2)) for y in range(3) for x in range(3)]
    return [
        np.pad(shrunk, ((0, 0), (top, down - top), (left, across - left), (0, 0)), mode="edge")
        for top, left in places
    ]


SEARCHES: dict[str, Search] = {
    "correlation": correlation,
    "dhash, 64 bits": by_hash(imagehash.dhash),
    "phash, 256 bits": by_hash(lambda image: imagehash.phash(image, hash_size=16, highfreq_factor=2)),
}


def judged_alike(count: int) -> np.ndarray:
    """Return for each row the first row that shows the same picture, int64 ``(count,)``."""
    same = np.arange(count)
    for group in JUDGED_ALIKE.split(";"):
        rows = [int(row) for row in group.split()]
        same[rows] = rows[0]
    return same


def measure(
    search: Search, images: np.ndarray, alike: np.ndarray, copies: int, sheet: Path | None
) -> dict[str, Any]:
    """Search for altered copies of a sample of the images; return recall and precision by threshold."""
    draws = numpy_generator(0, "near duplicates")
    sample = draws.choice(len(images), min(copies, len(images)), replace=False)
    similarities, original, right = {}, {}, {}
    wrong = []
    for kind in KINDS:
        found = search(altered(images[sample], kind), images)
        source = sample[found.queries]
        similarities[kind] = found.similarities
        original[kind] = source == found.images
        right[kind] = alike[source] == alike[found.images]
        if sheet is not None:
            wrong.append(np.stack([found.similarities, source, found.images], axis=1)[~right[kind]])
    if sheet is not None:
        draw_pairs(images, np.concatenate(wrong), sheet)
    table = []
    for threshold in THRESHOLDS:
        matched = {kind: values >= threshold for kind, values in similarities.items()}
        recall = {kind: round((original[kind] & matched[kind]).sum() / len(sample), 4) for kind in KINDS}
        row = {"threshold": threshold, "precision": share(right, matched)}
        row |= {"precision_strict": share(original, matched), "recall": sum(recall.values()) / len(KINDS)}
        table.append(row | {"recall_by_kind": recall})
    return {"copies_of_each_kind": len(sample), "thresholds": table}


def share(right: dict[str, np.ndarray], matched: dict[str, np.ndarray]) -> float | None:
    """Return the share of right ones among the matched, or None if nothing matched."""
    chosen = np.concatenate([right[kind][matched[kind]] for kind in right])
    return float(chosen.mean()) if len(chosen) else None


def describe(row: dict[str, Any]) -> str:
    """Format one data set and method: the default, and the first threshold of precision 0.99."""
    lines = [f"{row['data']}, {row['images']} images, {row['method']}"]
    good = [entry for entry in row["thresholds"] if (entry["precision"] or 0) >= 0.99]
    default = [entry for entry in row["thresholds"] if entry["threshold"] == DEFAULT_SIMILARITY]
    for entry in [*(default if row["method"] == "correlation" else []), *good[:1]]:
        kinds = "; ".join(f"{kind} {recall:.2f}" for kind, recall in entry["recall_by_kind"].items())
        lines.append(
            f"  similarity {entry['threshold']:.2f}: precision {entry['precision']:.3f} "
            f"(strict {entry['precision_strict']:.3f}), recall {entry['recall']:.3f}: {kinds}"
        )
    return "\n".join([*lines, *([] if good else ["  no threshold has precision 0.99"])]) + "\n"


def draw_pairs(images: np.ndarray, pairs: np.ndarray, path: Path, columns: int = 8, count: int = 96) -> None:
    """Draw the most similar distinct pairs (similarity, row, row), enlarged three times, best first."""
    distinct = {frozenset(rows): rows for _, *rows in sorted(pairs.astype(object).tolist())}
    best = list(distinct.values())[::-1][:count]
    tiles = [np.concatenate(images[np.array(rows, dtype=np.int64)], axis=1) for rows in best]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    lines = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate(lines).repeat(3, axis=0).repeat(3, axis=1)).save(path)


def time_searches() -> dict[str, float]:
    """Time the search for 100 images among 50,000 of noise, and each hash of one image."""
    noise = numpy_generator(0, "near duplicates").integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    started = time.perf_counter()
    find_near_duplicates(noise[:100], noise)
    timing = {"seconds for 100 of 50,000 images of 32x32": time.perf_counter() - started}
    for hasher in (imagehash.dhash, imagehash.phash):
        started = time.perf_counter()
        for image in noise[:2000]:
            hasher(Image.fromarray(image))
        timing[f"{hasher.__name__}, ms per image"] = (time.perf_counter() - started) / 2
    return timing


if __name__ == "__main__":
    main()
