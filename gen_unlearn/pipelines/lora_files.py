"""The adapters of a saved pipeline: each in peft's format, and a table of their members::

    adapters/members.json       how many records of each class each adapter has, those that wait included
    adapters/00017/             an adapter that answers, see `gen_unlearn.adapters.peft_files`

They come from deletable images: they travel with a pipeline only if that is asked for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.peft_files import load_adapter, save_adapter
from gen_unlearn.adapters.serving import ServedAdapters
from gen_unlearn.atomic import flush_tree, write_undated

FOLDER = "adapters"
TABLE = "members.json"

_TABLE_KEY = "members"


def save_adapters(served: ServedAdapters, lora: LoraConfig, folder: Path) -> None:
    """Save adapters to the folder of a pipeline, in the place of those of an earlier save.

    Args:
        served: the adapters.
        lora: how they look.
        folder: of the pipeline.

    Raises:
        ValueError: the folder holds adapters that were not saved by this.
    """
    place, fresh = folder / FOLDER, folder / f".{FOLDER}.unfinished"
    if place.exists() and not (place / TABLE).is_file():
        raise ValueError(
            f"{place} holds no adapters of an earlier save, and is not replaced; save to another folder"
        )
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for adapter in sorted(served.states):
        save_adapter(served.states[adapter], lora, fresh / f"{adapter:05d}")
    table = json.dumps({_TABLE_KEY: served.members.tolist()}, sort_keys=True)
    write_undated(fresh / TABLE, f"{table}\n".encode())
    flush_tree(fresh)
    if place.exists():
        shutil.rmtree(place)
    fresh.replace(place)


def load_adapters(folder: Path, lora: LoraConfig) -> ServedAdapters:
    """Read the adapters that `save_adapters` has saved to the folder of a pipeline.

    Raises:
        ValueError: there are none, or a file is missing or damaged.
    """
    place = folder / FOLDER
    try:
        members = json.loads((place / TABLE).read_text(encoding="utf-8"))[_TABLE_KEY]
        counts = np.array(members, dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place} holds no adapters of a saved pipeline: {error}; save them with include_adapters=True"
        ) from error
    numbers = sorted(int(path.name) for path in place.iterdir() if path.is_dir() and path.name.isdecimal())
    return ServedAdapters({n: load_adapter(place / f"{n:05d}", lora) for n in numbers}, counts)


def refuse_adapters(folder: Path) -> None:
    """Raise a ValueError if the folder of a pipeline holds adapters of an earlier save."""
    if (folder / FOLDER / TABLE).exists():
        raise ValueError(
            f"{folder} holds adapters of an earlier save; pass include_adapters=True to replace them, or "
            "save to another folder"
        )
