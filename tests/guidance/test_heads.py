import json

import pytest
import torch
import wan
from huggingface_hub import RepoUrl
from models.builders import case
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn import HeadSet
from diffattn.guidance import GuidanceConfig, Head, map_model, preset_names, resolve_heads
from diffattn.guidance.presets import PRESETS, preset_for

FLUX = map_model(case("Flux").build())
WAN = map_model(case("Wan").build())


def heads(made):
    return [(head.layer, head.head, head.strength) for head in made]


@pytest.mark.parametrize(
    "given",
    [
        [(2, 1), (0, 0)],
        [("single_transformer_blocks.1.attn", 1), ("transformer_blocks.0", 0)],
        ["single_transformer_blocks.1.attn:1", "0:0"],
        [[2, 1], Head("transformer_blocks.0.attn", 0)],
        {(2, 1): 1.0, "transformer_blocks.0:0": 1.0},
    ],
    ids=str,
)
def test_heads_by_number_or_name_in_the_order_of_selection(given):
    made = resolve_heads(FLUX, given)
    assert heads(made) == [("single_transformer_blocks.1.attn", 1, 1.0), ("transformer_blocks.0.attn", 0, 1.0)]


def test_layers_are_numbered_through_both_kinds_of_blocks_and_second_attentions_after_them():
    assert list(FLUX.layers) == [
        "transformer_blocks.0.attn",
        "single_transformer_blocks.0.attn",
        "single_transformer_blocks.1.attn",
    ]
    dual = map_model(case("SD3-3.5").build())
    assert heads(resolve_heads(dual, [(1, 0), ("transformer_blocks.1.attn2", 0), (4, 1)])) == [
        ("transformer_blocks.1.attn", 0, 1.0),
        ("transformer_blocks.1.attn2", 0, 1.0),
        ("transformer_blocks.1.attn2", 1, 1.0),
    ]


def test_whole_layers_blocks_and_strengths():
    made = resolve_heads(FLUX, {(0, 0): 0.5}, layers=2, skip_blocks=[1], strength=0.5)
    assert heads(made)[0] == ("transformer_blocks.0.attn", 0, 0.25)
    assert [head[2] for head in heads(made)[1:]] == [0.5, 0.5]
    assert made.skip_blocks == ("single_transformer_blocks.0",)
    assert made[:1].heads == made.heads[:1] and made[:1].skip_blocks == made.skip_blocks and len(made) == 3


def test_json_round_trip_is_small_and_keeps_order_and_settings(tmp_path):
    guidance = GuidanceConfig(scale=8.0, rows="image", stop=0.6, schedule={0.0: 1.0, 0.5: {"scale": 2.0}})
    made = resolve_heads(FLUX, {(2, 1): 1.0, (0, 0): 0.25}, guidance=guidance)
    for path in (tmp_path / "golden.json", tmp_path / "repository"):
        made.save(path)
        assert HeadSet.load(path) == made
    text = (tmp_path / "golden.json").read_text()
    assert len(text) < 2000 and json.loads(text)["heads"][0] == {
        "layer": "single_transformer_blocks.1.attn",
        "head": 1,
        "strength": 1.0,
    }


def test_pushing_to_the_hub_uploads_the_one_file(tmp_path, monkeypatch):
    made = resolve_heads(WAN, [(1, 1)])

    def create(api, repo_id, **options):
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(api, *, path_or_fileobj, path_in_repo, repo_id, commit_message):
        (tmp_path / path_in_repo).write_bytes(path_or_fileobj)
        assert (repo_id, commit_message) == ("me/heads", "Upload 1 heads")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_file", upload)
    made.push_to_hub("me/heads")
    assert HeadSet.load(tmp_path) == made


def test_a_set_guides_with_its_own_settings_unless_others_are_given(tmp_path):
    pipe = wan.text_to_video()
    model = map_model(pipe.transformer)
    made = resolve_heads(model, {(1, 1): 0.5}, guidance=GuidanceConfig(scale=1.0, stop=0.5))
    made.save(tmp_path / "heads.json")

    def run(*given, **options):
        diffattn.guide(pipe, *given, **options)
        return wan.run(pipe, 2)

    wanted = run({(1, 1): 0.5}, scale=1.0, stop=0.5)
    assert torch.equal(run(str(tmp_path / "heads.json")), wanted) and torch.equal(run(made), wanted)
    changed = run(made, scale=2.0, strength=0.5)
    assert torch.equal(changed, run({(1, 1): 0.25}, scale=2.0, stop=0.5)) and not torch.equal(changed, wanted)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"heads": [(99, 3)]}, r"no layer 99: WanTransformer3DModel has layers 0..2 .*heads 0..1"),
        ({"heads": [(1, 3)]}, r"no head 3 in blocks.1.attn1: .*heads 0..1"),
        ({"heads": [("blocks.9", 0)]}, r"no layer 'blocks.9'"),
        ({"heads": [(1, True)]}, r"no head True"),
        ({"heads": {(1, 0): 1.5}}, r"strength must be a number from 0 \(unperturbed\) to 1, got 1.5"),
        ({"heads": [(1, 0)], "strength": -0.1}, r"got -0.1"),
        ({"layers": [7]}, r"no layer 7"),
        ({"skip_blocks": [3]}, r"no block 3: WanTransformer3DModel has blocks 0..2"),
        ({"skip_blocks": ["blocks.7"]}, r"no block 'blocks.7'"),
        ({"heads": "golden"}, r"unknown preset 'golden', known are: sd3-medium, .*mochi"),
        ({"heads": "mochi"}, r"preset 'mochi' is for MochiTransformer3DModel .*but WanTransformer3DModel"),
        ({}, r"no preset for this checkpoint \(presets: .*layers 0..2 .*0.33 from block 2"),
        ({"heads": [(1, 0)], "target": "zero"}, r"target must be one of identity, uniform, seg, local, got 'zero'"),
        ({"heads": [(1, 0)], "rows": "text"}, r"rows must be one of all, image, image_block"),
        ({"heads": [(1, 0)], "rows": "image_block", "target": "seg"}, r"is a kind of target='identity'"),
        ({"heads": [(1, 0)], "start": 0.5, "stop": 0.2}, r"stop must be a number from 0.5 to 1, got 0.2"),
        ({"heads": [(1, 0)], "rescale": 2}, r"rescale must be a number from 0 to 1, got 2"),
        ({"heads": [(1, 0)], "scale": float("nan")}, r"scale must be a number, got nan"),
        ({"heads": [(1, 0)], "apply_to": "uncond", "scale": 2.0}, r"scale has no meaning with apply_to='uncond'"),
        ({"heads": [(1, 0)], "apply_to": "uncond", "rescale": 0.5}, r"rescale has nothing to rescale"),
        ({"heads": [(1, 0)], "schedule": {0: {"speed": 1}}}, r"a schedule cannot change speed, only scale"),
        ({"heads": [(1, 0)], "schedule": {3: 1.0, 1: 1.0}}, r"a schedule by step goes up, got \[3, 1\]"),
        ({"heads": [(1, 0)], "schedule": {0: 1.0, 0.5: 1.0}}, r"all counts \(int\) or all parts"),
        ({"heads": [(1, 0)], "schedule": {0.1: 1.0, 0.5: 1.0}, "schedule_by": "sigma"}, r"goes down"),
    ],
    ids=str,
)
def test_bad_input_is_refused_with_what_is_valid_and_changes_nothing(options, message):
    pipe = wan.text_to_video()
    with pytest.raises(ValueError, match=message):
        diffattn.guide(pipe, **options)
    assert not pipe.transformer._forward_hooks


def test_sets_of_other_models_and_files_that_are_none(tmp_path):
    pipe = wan.text_to_video()
    made = resolve_heads(FLUX, [(0, 0)])
    with pytest.raises(ValueError, match=r"for another model: FluxTransformer2DModel .*but WanTransformer3DModel"):
        diffattn.guide(pipe, made)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not a head set"):
        HeadSet.load(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match="no head set at"):
        diffattn.guide(pipe, str(tmp_path / "missing.json"))
    with pytest.raises(TypeError, match="heads must be a HeadSet, a dict or a list"):
        diffattn.guide(pipe, 3)
    with pytest.raises(TypeError, match="a head is"):
        diffattn.guide(pipe, [3])


def test_pipelines_whose_guidance_is_not_affine_are_refused():
    qwen = next(each for each in PIPELINES if each.name == "QwenImagePipeline").build()
    with pytest.raises(ValueError, match=r"cannot serve QwenImagePipeline: it scales the result .*HeadPerturb"):
        diffattn.guide(qwen, [(0, 0)])
    ltx = next(each for each in PIPELINES if each.name == "LTXPipeline")
    pipe = ltx.build()
    diffattn.guide(pipe, [(0, 0)])
    with pytest.raises(ValueError, match=r"guidance_rescale=0.5, which is not affine: leave it at 0"):
        ltx.run(pipe, 1, guidance_rescale=0.5)
    flux = next(each for each in PIPELINES if each.name == "FluxPipeline")
    pipe = flux.build()
    diffattn.guide(pipe, [(0, 0)], rescale=0.5)
    negative = {"negative_prompt_embeds": torch.ones(1, 7, 16), "negative_pooled_prompt_embeds": torch.ones(1, 16)}
    with pytest.raises(ValueError, match=r"rescale needs the scale .*FluxPipeline: give cfg_scale="):
        flux.run(pipe, 1, true_cfg_scale=3.0, **negative)


def test_a_transformer_alone_needs_to_be_told_the_step_where_it_matters():
    transformer = case("Wan").build()
    inputs = case("Wan").inputs()
    diffattn.guide(transformer, [(0, 0)], stop=0.5)
    with pytest.raises(ValueError, match="the denoising step is not known here"), torch.no_grad():
        transformer(**inputs)
    with torch.no_grad(), transformer.cache_context("cond", step_index=0, num_inference_steps=2):
        transformer(**inputs)
    diffattn.guide(transformer, [(0, 0)])
    with (
        pytest.raises(RuntimeError, match="before the conditional one"),
        torch.no_grad(),
        transformer.cache_context("uncond", step_index=0, num_inference_steps=2),
    ):
        transformer(**inputs)
    transformer.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled as a whole"):
        diffattn.guide(transformer, [(0, 0)])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_are_found_by_checkpoint_and_labelled(preset):
    import diffusers

    small = {key: value for key, value in _case_config(preset.model).items() if key != "num_layers"}
    config = {**small, **preset.config}
    if preset.dual:
        config["dual_attention_layers"] = (0, 1)
    with torch.device("meta"):
        transformer = getattr(diffusers, preset.model)(**config)
    made = preset_for(transformer)
    assert made == preset.heads(transformer) and made.search["note"] == "community default"
    assert made.heads or made.skip_blocks
    assert len(set(preset_names())) == len(PRESETS)


def _case_config(model):
    from models.builders import CASES

    return next(each.config for each in CASES if each.model == model)


def test_guide_without_heads_uses_the_preset():
    built = next(each for each in PIPELINES if each.name == "CogVideoXPipeline")
    pipe = type(built)(**{**vars(built), "changes": {"num_layers": 42}}).build()
    diffattn.guide(pipe)
    first = built.run(pipe, 1)
    diffattn.guide(pipe, "cogvideox-5b")
    assert torch.equal(built.run(pipe, 1), first)
    diffattn.guide(pipe, skip_blocks=[11], scale=1.0)
    assert torch.equal(built.run(pipe, 1), first)
    diffattn.unguide(pipe)
    assert not torch.equal(built.run(pipe, 1), first)


def test_a_checkpoint_may_bring_its_own_heads(tmp_path):
    from diffusers import WanTransformer3DModel

    wan.tiny_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}")

    def load():
        return (
            WanTransformer3DModel.from_pretrained(tmp_path / "transformer"),
            WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer"),
        )

    for transformer in load():
        with pytest.raises(ValueError, match="no preset for this checkpoint"):
            preset_for(transformer)
    own = resolve_heads(map_model(wan.tiny_transformer()), [(2, 1), (0, 0)], guidance=GuidanceConfig(scale=1.5))
    own.save(tmp_path)
    for transformer in load():
        assert preset_for(transformer) == own
        diffattn.guide(transformer)
        assert "scale 1.5, heads 0:0 2:1" in str(diffattn.summary(transformer))
    resolve_heads(FLUX, [(0, 0)]).save(tmp_path)
    with pytest.raises(ValueError, match="for another model: FluxTransformer2DModel"):
        diffattn.guide(load()[0])
