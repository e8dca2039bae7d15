"""The perturbed pass on real transformers: what it computes, what it shares, what it leaves behind."""

import explicit
import pytest
import torch
from explicit import ExplicitAttention, interpolate
from models.builders import CASES, case

import diffattn
from diffattn import NeighborhoodConfig, RadialConfig, Schedule
from diffattn.guidance.blocks import take_samples
from diffattn.guidance.engine import Perturber
from diffattn.guidance.selection import Selection
from diffattn.guidance.strengths import Strengths
from diffattn.models import adapter_named

FAMILIES = ["SD3", "SD3-3.5", "Flux", "Wan", "HunyuanVideo", "CogVideoX", "LTXVideo"]
FULL, ALWAYS = RadialConfig(density=1.0), Schedule(0, 0, 0)
NOT_SLICED = (
    "HiDreamImage",
    "ErnieImage",
    "BriaFibo2-Edit",
    "ZImage",
    "HunyuanVideoFramepack",
)  # see PipelineCfg.slices, or never batched


class Run:
    """A case, its model, fixed inputs and a perturber."""

    def __init__(self, name):
        self.case = case(name)
        self.model = self.case.build()
        torch.manual_seed(1)
        self.inputs = {**self.case.inputs(), "return_dict": False}
        self.perturber = Perturber(self.model)
        self.perturber.begin((), self.inputs)
        self.layers = list(self.perturber.model.layers)

    @torch.no_grad()
    def __call__(self, **changes):
        torch.manual_seed(1)
        out = self.model(**{**self.inputs, **changes})
        out = out[0] if isinstance(out, tuple) else out
        return torch.stack(out) if isinstance(out, list) else out

    def perturbed(self, selection, prefix=None, **changes):
        with self.perturber.perturbing(selection, prefix):
            return self(**changes)

    def recorded(self, selection):
        with self.perturber.recording(selection) as prefix:
            return self(), prefix

    def select(self, *heads, **options):
        """From (number of the layer, head, u or u of each sample)."""
        values = {}
        for layer, head, strength in heads:
            name = self.layers[layer]
            samples = strength if isinstance(strength, (tuple, list)) else (strength,)
            values.setdefault(name, torch.zeros(len(samples), 2))[:, head] = torch.tensor(samples)
        ordered = {name: Strengths(values[name]) for name in self.layers if name in values}
        return Selection(ordered, **options)


_runs = {}


@pytest.fixture(params=FAMILIES)
def run(request):
    if request.param not in _runs:
        _runs[request.param] = Run(request.param)
    return _runs[request.param]


@pytest.fixture
def wan():
    return Run("Wan")


def close(got, wanted, atol=1e-5):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def test_every_target_is_its_matrix_in_the_models_own_processors(run):
    first, last = len(run.layers) - 2, len(run.layers) - 1
    strengths = {first: torch.tensor([[0.6, 0.0]]), last: torch.tensor([[1.0, 1.0]])}
    heads = [(first, 0, 0.6), (last, 0, 1.0), (last, 1, 1.0)]
    plain = run()
    for target in ("identity", "uniform", "seg"):
        change = {run.layers[at]: interpolate(u, getattr(explicit, target)) for at, u in strengths.items()}
        with ExplicitAttention(run.model, change) as oracle:
            wanted = run()
        assert oracle.calls == 2 and (wanted - plain).abs().max() > 1e-3
        close(run.perturbed(run.select(*heads, target=target)), wanted)
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("name", ["SD3", "SD3-3.5", "Flux", "HunyuanVideo", "CogVideoX"])
@pytest.mark.parametrize("rows", ["image", "image_block"])
def test_rows_are_those_of_the_image_wherever_the_text_is(name, rows):
    run = _runs.get(name) or Run(name)
    layer, tokens = run.layers[-1], run.case.video
    others = 0 if layer.endswith("attn2") else 7
    start = others if run.case.before or name == "Flux" else 0
    at = slice(start, start + tokens)
    target = explicit.identity if rows == "image" else explicit.image_block(at.start, at.stop)
    with ExplicitAttention(run.model, {layer: interpolate(torch.tensor([[0.7, 0.0]]), target, at)}):
        wanted = run()
    assert (wanted - run()).abs().max() > 1e-3
    close(run.perturbed(run.select((len(run.layers) - 1, 0, 0.7), rows=rows)), wanted)


@pytest.mark.parametrize("name", [str(each) for each in CASES if not adapter_named(each.model).keys_alone])
def test_replay_is_the_whole_pass_bit_for_bit_in_every_supported_class(name):
    run = _runs.get(name) or Run(name)
    plain, blocks = run(), run.perturber.model.blocks
    selections = [run.select((layer, 1, 0.7)) for layer in {0, len(run.layers) - 1}]
    for selection in [*selections, Selection(skipped=blocks[-1:])]:
        recorded, prefix = run.recorded(selection)
        whole = run.perturbed(selection)
        assert torch.equal(recorded, plain) and not torch.equal(whole, plain)
        assert torch.equal(run.perturbed(selection, prefix), whole)
    if len(plain) > 1 and name not in NOT_SLICED:
        own = slice(1, 2)
        half = run.perturbed(selection, prefix.take(2, own), **take_samples(run.inputs, 2, own))
        close(half, whole[own])


def test_replay_from_every_block_runs_only_what_follows(run):
    blocks = run.perturber.model.blocks
    for at, block in enumerate(blocks):
        layer = run.layers.index(run.perturber.model.layers_of(block)[-1])
        selection = run.select((layer, 0, 0.5))
        _, prefix = run.recorded(selection)
        whole, ran = run.perturbed(selection), []
        handles = [
            run.model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name, ran=ran: ran.append(name))
            for name in run.layers
        ]
        assert torch.equal(run.perturbed(selection, prefix), whole)
        for handle in handles:
            handle.remove()
        assert {run.perturber.model.block_of(layer) for layer in ran} == set(blocks[at:])
        assert run.perturber.cost(selection, prefix) == 1 - at / len(blocks)


def test_replay_does_not_compute_the_first_attention_again(run, monkeypatch):
    last = len(run.layers) - 1
    selection = run.select((last, 0, 0.5))
    _, prefix = run.recorded(selection)
    with ExplicitAttention(run.model, {run.layers[last]: lambda call: call.probs}) as counted:
        run.perturbed(selection, prefix)
    assert counted.calls == 0


def test_heads_of_one_sample_change_no_other(run):
    alone = run.perturbed(run.select((0, 0, (1.0, 0.0)), (1, 1, (0.4, 0.0))))
    both = run.perturbed(run.select((0, 0, (1.0, 0.3)), (1, 1, (0.4, 1.0))))
    assert torch.equal(alone[0], both[0]) and not torch.equal(alone[1], both[1])
    assert torch.equal(alone[1], run()[1])


def test_skipped_blocks_return_their_inputs(run):
    blocks = run.perturber.model.blocks
    inputs = {}

    def note(module, args, kwargs):
        values = {**dict(zip(("hidden_states", "encoder_hidden_states"), args)), **kwargs}
        inputs[module] = (values["hidden_states"], values.get("encoder_hidden_states"))

    middle, after = (run.model.get_submodule(name) for name in (blocks[-2], blocks[-1]))
    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in (middle, after)]
    skipped = run.perturbed(Selection(skipped=(blocks[-2],)))
    for handle in handles:
        handle.remove()
    assert all(torch.equal(*pair) for pair in zip(inputs[middle], inputs[after]))
    assert not torch.equal(skipped, run())
    assert torch.equal(run.perturbed(Selection(skipped=(blocks[-2],))), skipped)
    half = run.perturbed(Selection(skipped=(blocks[-2],), skipping=(True, False)))
    close(half, torch.stack([skipped[0], run()[1]]))


def test_full_density_is_dense_and_the_sparse_plan_is_kept(run):
    heads = [(0, 0, 0.5), (len(run.layers) - 1, 1, 1.0)]
    dense = run.perturbed(run.select(*heads))
    diffattn.enable(run.model, FULL, schedule=ALWAYS)
    close(run.perturbed(run.select(*heads)), dense)
    diffattn.enable(run.model, NeighborhoodConfig(density=0.5), schedule=ALWAYS)
    sparse = run.perturbed(run.select(*heads))
    _, prefix = run.recorded(run.select(*heads))
    assert torch.equal(run.perturbed(run.select(*heads), prefix), sparse)
    diffattn.disable(run.model)
    assert (sparse - dense).abs().max() > 1e-4 and torch.equal(run.perturbed(run.select(*heads)), dense)


def test_local_is_sparse_attention(wan):
    wan.perturber = Perturber(wan.model, local=NeighborhoodConfig(density=0.4))
    wan.perturber.begin((), wan.inputs)
    every = [(layer, head, 1.0) for layer in (0, 1) for head in (0, 1)]
    local = wan.perturbed(wan.select(*every, target="local"))
    diffattn.enable(wan.model, NeighborhoodConfig(density=0.4), schedule=ALWAYS)
    close(local, wan())


def test_an_exception_leaves_nothing_behind(run):
    processors = dict(run.model.named_modules())
    before = {name: getattr(module, "processor", None) for name, module in processors.items()}
    plain, selection = run(), run.select((1, 0, 0.5), (0, 1, 1.0))
    broken = run.model.get_submodule(run.perturber.model.blocks[-1])
    handle = broken.register_forward_pre_hook(lambda *_: 1 / 0)
    for within in (run.perturber.recording, run.perturber.perturbing):
        with pytest.raises(ZeroDivisionError), within(selection):
            run()
    handle.remove()
    assert all(getattr(module, "processor", None) is before[name] for name, module in processors.items())
    assert all("forward" not in vars(run.model.get_submodule(block)) for block in run.perturber.model.blocks)
    assert torch.equal(run(), plain)


def test_gradients_of_all_heads_in_one_backward_pass():
    run = Run("CogVideoX")
    model, inputs = run.model.double(), run.inputs
    inputs = {name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()}
    values = {name: torch.zeros(1, 2, dtype=torch.float64, requires_grad=True) for name in run.layers}
    weight = torch.randn(2, 3, 4, 8, 12, dtype=torch.float64)

    def score(strengths):
        with run.perturber.perturbing(Selection({name: Strengths(u) for name, u in strengths.items()})):
            return (model(**inputs)[0] * weight).sum()

    gradients = torch.autograd.grad(score(values), list(values.values()))
    step = torch.tensor([[0.0, 1e-4]], dtype=torch.float64)
    for name, gradient in zip(values, gradients):
        moved = (score({name: step}) - score({name: -step})) / 2e-4
        assert abs(gradient[0, 1] - moved) < 1e-5 * gradient.abs().max()


def test_per_sample_heads_need_a_layer_that_sees_all_samples():
    run = Run("Mochi")
    assert run.perturbed(run.select((0, 0, 0.5))).isfinite().all()
    with pytest.raises(NotImplementedError, match="1 samples at a time, heads were chosen for 2"):
        run.perturbed(run.select((0, 0, (0.5, 0.1))))
