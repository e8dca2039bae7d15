"""How the pipelines of diffusers do classifier-free guidance, by the names of their classes.

Pipelines that name their calls through `cache_context` need no entry.
"""

# one call with [uncond; cond] in a batch, which no cache context names
BATCHED = {
    *("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    *("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"),
    *("AllegroPipeline", "AnyFlowPipeline", "AuraFlowPipeline", "BriaPipeline", "BriaFiboPipeline"),
    *("CogView3PlusPipeline", "ConsisIDPipeline", "CosmosTextToWorldPipeline", "HiDreamImagePipeline"),
    *("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline"),
    *("PixArtAlphaPipeline", "PixArtSigmaPipeline", "ErnieImagePipeline"),
    *("ZImagePipeline", "ZImageImg2ImgPipeline"),
}
# the conditional call, then the unconditional one, which no cache context names
CALLS = {
    *("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline", "ChronoEditPipeline"),
    *("CogView4ControlPipeline", "CosmosVideoToWorldPipeline", "Cosmos2TextToImagePipeline"),
    *("Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline"),
    *("FluxControlNetPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxKontextPipeline"),
    *("FluxKontextInpaintPipeline", "HunyuanSkyreelsImageToVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    *("HunyuanVideoFramepackPipeline", "Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline", "Kandinsky5T2IPipeline"),
    *("Kandinsky5I2IPipeline", "WanVideoToVideoPipeline", "Krea2Pipeline", "BriaFibo2Pipeline"),
}
# no classifier-free guidance
DISTILLED = {
    *("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline", "FluxFillPipeline"),
    *("FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline", "Flux2Pipeline", "Flux2KleinKVPipeline"),
    "VisualClozeGenerationPipeline",
}
_NORM = "it scales the result of classifier-free guidance to the norm of the conditional prediction"
_OWN = "it has guidance of this kind of its own"
# pipelines that combine the predictions in another way than u + g (c - u), and the reason to refuse them
NOT_AFFINE = {
    **dict.fromkeys(("LongCatImagePipeline", "LongCatImageEditPipeline", "Lumina2Pipeline"), _NORM),
    "HeliosPyramidPipeline": "it scales the unconditional prediction by a factor found from both",
}
# the same, by the beginning of the names
FAMILIES_NOT_AFFINE = {
    "JoyImageEdit": _NORM,
    "QwenImage": _NORM,
    "ZImage": _NORM,
    "LTX2": _OWN,
    "StableDiffusion3PAG": _OWN,
    "PixArtSigmaPAG": _OWN,
}
# the rest are beginnings of names too
COND_FIRST = ("ZImage",)  # of those in BATCHED: [cond; uncond]
HIDDEN_SCALE = ("PixArt",)  # do not expose g
AMBIGUOUS_SCALE = ("Flux", "Hunyuan")  # `guidance_scale` may be an input of a distilled model
CHANGING_SCALE = ("CogVideoX", "ConsisID")  # with use_dynamic_cfg
SCALED_BY_ONE_MORE = ("Cosmos", "Krea2")  # c + g (c - u)
# tokens or layers of text before samples, or an order that depends on all samples: a batch cannot be cut
NOT_SLICED = ("HiDream", "ErnieImage", "BriaFibo2")
