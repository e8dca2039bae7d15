import pytest
import torch

import diffattn
from diffattn import Schedule
from diffattn.integration.hook import find_hook

from .own_block import OwnBlockConfig
from .pipeline_builders import PIPELINES

SCHEDULE = Schedule(dense_start=2, dense_end=1, dense_layers=1)


@pytest.fixture(params=PIPELINES, ids=str)
def pipeline(request):
    return request.param, request.param.build()


def test_steps_are_the_schedulers_and_dense_ones_where_the_schedule_says(pipeline):
    case, pipe = pipeline
    dense = case.run(pipe)
    diffattn.enable(pipe, OwnBlockConfig(), schedule=SCHEDULE)
    seen = []

    def note(pipe, index, timestep, tensors):
        seen.append((find_hook(pipe.transformer).handler.state.step, index))
        return {}

    sparse = case.run(pipe, callback_on_step_end=note)
    assert seen == [((index, 5), index) for index in range(5)]
    first, *others = diffattn.summary(pipe).models[0].layers
    each = case.forwards * case.calls
    assert (first.sparse_calls, first.dense_calls) == (0, {"dense step": 3 * each, "dense layer": 2 * each})
    assert all((x.sparse_calls, x.dense_calls) == (2 * each, {"dense step": 3 * each}) for x in others)
    assert sparse.isfinite().all() and not torch.equal(sparse, dense)
    assert torch.equal(case.run(pipe), sparse)
    diffattn.disable(pipe)
    assert torch.equal(case.run(pipe), dense)


def test_dense_everywhere_is_the_dense_run(pipeline):
    case, pipe = pipeline
    dense = case.run(pipe, steps=2)
    diffattn.enable(pipe, OwnBlockConfig(), schedule=Schedule(dense_start=1.0))
    assert torch.equal(case.run(pipe, steps=2), dense)
