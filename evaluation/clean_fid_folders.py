"""The Fréchet distance between two folders by clean-fid.

    python -m evaluation.clean_fid_folders GENERATED REFERENCE

prints the peak memory of the process in kB. Nothing of this package is imported, as that would count too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cleanfid.fid import compute_fid
from torch import nn

from evaluation.folder_networks import BATCH, device, print_peak, small_network


def clean_fid_distance(generated: Path, reference: Path, network: nn.Module, workers: int) -> float:
    """Measure the distance with clean-fid."""
    return float(
        compute_fid(
            str(generated),
            str(reference),
            num_workers=workers,
            batch_size=BATCH,
            device=device(),
            custom_feat_extractor=network,
            verbose=False,
        )
    )


if __name__ == "__main__":
    clean_fid_distance(Path(sys.argv[1]), Path(sys.argv[2]), small_network(), workers=0)
    print_peak()
