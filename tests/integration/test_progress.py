import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.hooks.hooks import CacheContext

from diffattn.integration.progress import find_step


def scheduler(cls=FlowMatchEulerDiscreteScheduler, steps: int = 4):
    made = cls()
    made.set_timesteps(steps)
    return made


def test_the_pipelines_word_comes_first():
    context = CacheContext("cond", step_index=7, num_inference_steps=9)
    assert find_step(context, scheduler(), None) == (7, 9)
    assert find_step(CacheContext("cond"), scheduler(), None) == (0, 4)


def test_the_scheduler_counts_from_its_begin_index():
    made = scheduler()
    made.set_begin_index(2)
    assert find_step(None, made, None) == (2, 4)
    made.step(torch.zeros(1), made.timesteps[2], torch.zeros(1))
    assert find_step(None, made, None) == (3, 4)
    made.step(torch.zeros(1), made.timesteps[3], torch.zeros(1))
    assert find_step(None, made, None) is None


def test_before_the_first_step_of_a_run_that_begins_late():
    made = scheduler()
    assert made.begin_index is None and made.step_index is None
    assert find_step(None, made, made.timesteps[2]) == (2, 4)
    assert find_step(None, made, torch.tensor(-5)) == (0, 4)
    made.step(torch.zeros(1), made.timesteps[2], torch.zeros(1))
    assert find_step(None, made, made.timesteps[3]) == (3, 4)


def test_of_two_timesteps_alike_a_late_run_begins_with_the_second():
    """A second-order scheduler has every timestep but the first twice: at the end and at the start of a step."""
    made = scheduler(FlowMatchHeunDiscreteScheduler)
    late = made.timesteps[3]
    call = made.index_for_timestep(late)
    assert (made.timesteps == late).sum() == 2 and call == 4
    assert find_step(None, made, late) == (2, 4)


def test_a_scheduler_without_a_counter_is_asked_for_the_timestep():
    made = scheduler(DDIMScheduler)
    assert not hasattr(made, "step_index")
    assert find_step(None, made, made.timesteps[3].expand(2)) == (3, 4)
    known_frames = torch.tensor([[0, 0, int(made.timesteps[1])]])
    assert find_step(None, made, known_frames) == (1, 4)
    assert find_step(None, made, torch.tensor(-5)) is None


def test_nobody_knows():
    assert find_step(None, None, torch.tensor(3)) is None
    assert find_step(None, DDIMScheduler.from_config({"_class_name": "x"}), None) is None
