"""How the pipelines of diffusers do classifier-free guidance, by the names of their classes.

Pipelines that name their calls through `cache_context` are not listed: they say it themselves.
"""

# one call with [uncond; cond] in a batch, and no cache context that says so
BATCHED = {
    *("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    *("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"),
    *("AllegroPipeline", "AnyFlowPipeline", "AuraFlowPipeline", "BriaPipeline", "BriaFiboPipeline"),
    *("CogView3PlusPipeline", "ConsisIDPipeline", "CosmosTextToWorldPipeline", "HiDreamImagePipeline"),
    *("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline"),
    *("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
}
# the conditional call, then the unconditional one, and no cache context that says so
CALLS = {
    *("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline", "ChronoEditPipeline"),
    *("CogView4ControlPipeline", "CosmosVideoToWorldPipeline", "Cosmos2TextToImagePipeline"),
    *("Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline"),
    *("FluxControlNetPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxKontextPipeline"),
    *("FluxKontextInpaintPipeline", "HunyuanSkyreelsImageToVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    *("HunyuanVideoFramepackPipeline", "Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline", "Kandinsky5T2IPipeline"),
    *("Kandinsky5I2IPipeline", "WanVideoToVideoPipeline"),
}
# no classifier-free guidance
DISTILLED = {
    *("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline", "FluxFillPipeline"),
    *("FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline", "Flux2Pipeline", "Flux2KleinKVPipeline"),
    "VisualClozeGenerationPipeline",
}
_NORM = "it scales the result of classifier-free guidance to the norm of the conditional prediction"
_OWN = "it has guidance of this kind of its own"
# combine the predictions in another way than u + g (c - u), and which
NOT_AFFINE = {
    **dict.fromkeys(("LongCatImagePipeline", "LongCatImageEditPipeline", "Lumina2Pipeline"), _NORM),
    "HeliosPyramidPipeline": "it scales the unconditional prediction by a factor found from both",
}
# the same, by how the names of the pipelines begin
FAMILIES_NOT_AFFINE = {
    "QwenImage": _NORM,
    "ZImage": _NORM,
    "LTX2": _OWN,
    "StableDiffusion3PAG": _OWN,
    "PixArtSigmaPAG": _OWN,
}
# the rest are beginnings of names
HIDDEN_SCALE = ("PixArt",)  # keep g to themselves
AMBIGUOUS_SCALE = ("Flux", "Hunyuan")  # `guidance_scale` is the one a distilled model is told
CHANGING_SCALE = ("CogVideoX", "ConsisID")  # with use_dynamic_cfg
SCALED_BY_ONE_MORE = ("Cosmos",)  # c + g (c - u)
NOT_SLICED = ("HiDream",)  # text of all samples stacked by layer, so that a batch cannot be cut into samples
