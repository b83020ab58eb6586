"""Arithmetic that depends on the number of threads is done by one Python thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from small_ensembles import random_jobs, random_records
from threadpoolctl import threadpool_info, threadpool_limits

from gen_unlearn.adapters import determinism
from gen_unlearn.adapters.family import FitJob, HeadShape, digest_adapter
from gen_unlearn.adapters.one_thread import one_thread, pinned_threads
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.adapters.sgd import SgdHeads

SHAPE = HeadShape(12, 4)
SOME = random_jobs([20], SHAPE)
SUMS = RidgeHeads().update(None, SOME[0].members, 1, SHAPE)


def self_test() -> None:
    determinism._passes.cache_clear()
    determinism.is_deterministic(RidgeHeads())


WORK: dict[str, Callable[[], object]] = {
    "fit ridge": lambda: RidgeHeads().fit(SOME, SHAPE, 0),
    "complete ridge": lambda: RidgeHeads().complete(SUMS),
    "fit sgd": lambda: SgdHeads(epochs=1).fit(SOME, SHAPE, 0),
    "self-test": self_test,
    "centres": lambda: public_keys(random_records(9).codes, random_records(9).ids, 3, "public-kmeans", 0),
    "draws": lambda: public_keys(random_records(9).codes, random_records(9).ids, 3, "public-gaussian", 0),
}


def threads() -> tuple[int, ...]:
    """Return the numbers of threads of torch and of every BLAS library."""
    found = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return torch.get_num_threads(), *found


@pytest.mark.parametrize("name", WORK)
def test_others_wait_until_whoever_computes_is_done(name: str) -> None:
    worker = threading.Thread(target=WORK[name])
    with one_thread():
        WORK[name]()  # The same thread may enter again.
        worker.start()
        worker.join(0.2)
        assert worker.is_alive(), "it computes while the number of threads is another one's"
    worker.join(60)
    assert not worker.is_alive()


def test_numbers_of_threads_are_put_back() -> None:
    before = threads()
    with pinned_threads(2):
        assert set(threads()) == {2}
        with one_thread():
            assert set(threads()) == {1}
        assert set(threads()) == {2}
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert set(threads()) == {2}
    assert threads() == before


def test_two_threads_that_fit_at_once_get_the_bits_of_one() -> None:
    """While a third thread, this one, is within limits of its own."""
    shape, heads = HeadShape(512, 10), RidgeHeads()
    sums = [heads.update(None, job.members, 1, shape) for job in random_jobs([600, 800], shape)]
    expected = [digest_adapter(heads.complete(state)) for state in sums]
    found: list[set[str]] = [set(), set()]

    def work(place: int) -> None:
        found[place] = {digest_adapter(heads.complete(sums[place])) for _ in range(25)}

    workers = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    with threadpool_limits(2, user_api="blas"):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert found == [{digest} for digest in expected]


def test_trained_heads_do_so_beside_the_self_test() -> None:
    shape, heads = HeadShape(128, 4), SgdHeads(epochs=2)
    job = FitJob(3, random_records(300, 128))
    expected = digest_adapter(heads.fit([job], shape, 0)[0])
    worker = threading.Thread(target=lambda: [self_test() for _ in range(5)])
    worker.start()
    found = {digest_adapter(heads.fit([job], shape, 0)[0]) for _ in range(10)}
    worker.join()
    assert found == {expected}
