"""A model as it was before its deletions, in memory only: the deleted images put back."""

from __future__ import annotations

import numpy as np

from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import members_of
from gen_unlearn.commands.ensemble_recipe import recipe_of
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_keys import encode_exemplars
from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import Rows, row_keys


def undeleted_classifier(
    run: RunFolder, pipeline: SemiParametricPipeline, deleted: IndexedImages
) -> SemiParametricPipeline:
    """Return a semi-parametric classifier with deleted images among its exemplars.

    Args:
        run: the run.
        pipeline: its classifier as it is now.
        deleted: the images.
    """
    bank, folder = pipeline.bank, run.exemplar_folder()
    back = encode_exemplars(pipeline.network, deleted, folder.image_shape[:2], "encode deleted images")
    assert back.codes is not None
    rows = Rows(
        pixels=np.empty(len(bank) + len(back.ids), dtype=np.uint8),
        labels=np.concatenate([bank.labels, back.labels]),
        ids=np.concatenate([bank.ids, back.ids]),
        codes=np.concatenate([bank.codes.reshape(len(bank), back.code_length), back.codes]),
    )
    core = run.classifier_config.core.mode
    return SemiParametricPipeline(pipeline.network, rows, bank.class_names, core, pipeline.prediction)


def undeleted_ensemble(
    run: RunFolder, pipeline: AdapterEnsemblePipeline, deleted: IndexedImages
) -> AdapterEnsemblePipeline:
    """Return an adapter ensemble whose adapters were fit on deleted images too.

    Args:
        run: the run.
        pipeline: its classifier as it is now.
        deleted: the images.
    """
    recipe, folder = pipeline.recipe, run.exemplar_folder()
    size, neighbours = folder.image_shape[:2], recipe.neighbours
    back = encode_records(pipeline.network, deleted, neighbours, size, "encode deleted images")
    rows = Rows.joined([folder.all_rows(pixels=False), back.without_pixels()])
    rows = rows.select(np.argsort(row_keys(rows)))
    records, routes = Records.of_rows(rows, recipe.shape.features)
    return pipeline.with_adapters(recipe.fit(records, dict(enumerate(members_of(routes, len(recipe.keys))))))


def undeleted_generator(run: RunFolder, deleted: IndexedImages) -> RefittableEnsemble | None:
    """Return an adapter ensemble that generates, to be had with deleted images in it; `None` for other runs.

    Args:
        run: the run.
        deleted: the images.
    """
    pipeline = run.load_pipeline()
    if not isinstance(pipeline, AdapterEnsembleDDPMPipeline):
        return None
    return RefittableEnsemble(pipeline, recipe_of(run), run.exemplar_folder().all_rows(), deleted)
