"""Models of images, videos and volumes that nobody wrote a plugin for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.wild_models import (
    UNSEEN,
    WIDTH,
    Library,
    Make,
    Subject,
    each,
    noise,
    of,
    resolve_name,
    square,
    words,
)

IMAGE = square(64)

# Those of pytorchcv that take a number of classes, one or two of each architecture.
_CV = words(
    """
alexnet alexnetb zfnet vgg11 bn_vgg11 bn_vgg11b bninception resnet10 resnetbc14b resnet18_wd4
preresnet10 preresnetbc14b resnext14_16x4d seresnet10 seresnetbc26b sepreresnet10
seresnext50_32x4d senet16 resnestabc14 resnesta18 ibn_resnet50 ibnb_resnet50 ibn_resnext50_32x4d
ibn_densenet121 airnet50_1x64d_r2 airnext50_32x4d_r2 bam_resnet18 bam_resnet50 cbam_resnet18
cbam_resnet50 resattnet56 sknet50 scnet50 scneta50 regnetx002 regnety002 regnety004 diaresnet10
diaresnetbc14b diapreresnet10 pyramidnet101_a360 diracnet18v2 sharesnet18 sharesnet50 densenet121
densenet169 condensenet74_c4_g4 condensenet74_c8_g8 sparsenet121 peleenet wrn50_2 drnc26 drnd22
dpn68 dpn68b darknet_ref darknet_tiny darknet19 darknet53 channelnet revnet38 irevnet301 bagnet9
bagnet33 dla34 dla46xc dla60x msdnet22 fishnet99 espnetv2_wd2 dicenet_wd5 hrnet_w18_small_v1
hrnet_w18_small_v2 vovnet27s vovnet39 selecsls42 selecsls60b hardnet39ds hardnet68
squeezenet_v1_0 squeezenet_v1_1 squeezeresnet_v1_0 sqnxt23_w1 sqnxt23v5_w1 shufflenet_g1_wd4
shufflenet_g3_wd4 shufflenetv2_wd2 shufflenetv2b_wd2 menet108_8x1_g3 mobilenet_wd4
mobilenetb_wd4 fdmobilenet_wd4 mobilenetv2_wd4 mobilenetv2b_wd4 mobilenetv3_small_w7d20
mobilenetv3_large_w7d20 igcv3_wd4 ghostnet mnasnet_b1 mnasnet_a1 mnasnet_small darts
proxylessnas_cpu proxylessnas_gpu fbnet_cb nasnet_4a1056 pnasnet5large spnasnet xception
inceptionv3 inceptionv4 inceptionresnetv1 inceptionresnetv2 polynet efficientnet_b0
efficientnet_b0b efficientnet_b0c efficientnet_edge_small_b mixnet_s mixnet_m isqrtcovresnet18
resneta10 resnetabc14b resnetd50b octresnet10_ad2 octresnet50b_ad2 tresnet_m nin_cifar10
wrn16_10_cifar10 rir_cifar10 fractalnet_cifar10 resnext29_32x4d_cifar10
fcn8sd_resnetd50b_voc deeplabv3_resnetd50b_voc pspnet_resnetd50b_voc cgnet_cityscapes
dabnet_cityscapes lednet_cityscapes unet_cityscapes fpenet_cityscapes sinet_cityscapes
esnet_cityscapes edanet_cityscapes enet_cityscapes erfnet_cityscapes linknet_cityscapes
segnet_cityscapes sqnet_cityscapes centernet_resnet18_voc
"""
)


# Heads that forward leaves out, and layers that are as wide as there are classes.
_EXCUSED = {
    "msdnet22": (("classifiers.classifier[1-9].*",), UNSEEN),
    "sinet_cityscapes": (("encoder.*", "decoder.[!o]*"), WIDTH),
}


def _cv(name: str) -> Subject:
    sides = {"pnasnet5large": 331, "xception": 299, "polynet": 331, "bninception": 224}
    side = sides.get(name, 299 if name.startswith("inception") else 224)
    shape = (side, side)
    if "cifar" in name:
        shape = (32, 32)
    elif name.endswith("_voc"):
        shape = (480, 480)
    elif name.endswith("_cityscapes"):
        shape = (256, 512)
    make = of("pytorchcv.model_provider:get_model", name, pretrained=False)
    apart, why = _EXCUSED.get(name, ((), ""))
    return Subject(make, noise(2, 3, *shape), meta=True, apart=apart, why=why)


_PLAIN: dict[str, Any] = {"image_size": 64, "patch_size": 16, "dim": 32, "depth": 2, "heads": 2}
_PLAIN |= {"mlp_dim": 48}
_CAIT = _PLAIN | {"cls_depth": 1}
_CLIP: dict[str, Any] = {"image_size": 32, "image_patch_size": 16, "frames": 4}
_CLIP |= {"frame_patch_size": 2, "dim": 32, "heads": 2, "mlp_dim": 48}
_LEVIT: dict[str, Any] = {"image_size": 224, "stages": 3, "dim": (16, 24, 32), "depth": 1}
_LEVIT |= {"heads": (2, 2, 2), "mlp_mult": 2}
_CCT: dict[str, Any] = {"embedding_dim": 32, "n_conv_layers": 1, "pooling_kernel_size": 3}
_CCT |= {"pooling_stride": 2, "pooling_padding": 1, "num_heads": 2, "stride": 2}
_CCT |= {"positional_embedding": "learnable"}
_TWINS = {f"s{n}_emb_dim": width for n, width in enumerate((16, 24, 32, 40), 1)}
_TWINS |= {f"s{n}_{what}": 1 for n in range(1, 5) for what in ("depth",)}
_TWINS |= {f"s{n}_{what}": 7 for n in range(1, 5) for what in ("local_patch_size", "global_k")}
_TWINS |= {"s1_patch_size": 4, "s2_patch_size": 2, "s3_patch_size": 2, "s4_patch_size": 2}
_CVT = {"s1_emb_dim": 16, "s1_depth": 1, "s2_emb_dim": 24, "s2_heads": 2, "s2_depth": 1}
_CVT |= {"s3_emb_dim": 32, "s3_heads": 2, "s3_depth": 1}
_CROSS = {"sm_dim": 16, "sm_patch_size": 8, "sm_enc_depth": 1, "sm_enc_heads": 2}
_CROSS |= {"sm_enc_mlp_dim": 24, "lg_dim": 20, "lg_patch_size": 16, "lg_enc_depth": 1}
_CROSS |= {"lg_enc_heads": 2, "lg_enc_mlp_dim": 28, "cross_attn_depth": 1, "cross_attn_heads": 2}
_WINDOWS: dict[str, Any] = {"dim": (16, 24, 32, 40), "depth": (1, 1, 1, 1)}
_SCALABLE: dict[str, Any] = {"dim": 16, "heads": (1, 2, 2, 4), "depth": (1, 1, 1, 1)}
_MAX: dict[str, Any] = {"dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1)}
_MAX |= {"window_size": 7, "mbconv_expansion_rate": 2, "mbconv_shrinkage_rate": 0.25}
_MOBILE = {"dims": [24, 32, 40], "channels": [16, 16, 24, 24, 32, 32, 40, 40, 48, 48, 56]}
_JUMBO = {"num_jumbo_cls": 1, "jumbo_cls_k": 2, "jumbo_ff_mult": 2}

# Module and class in vit_pytorch, what its constructor is given, and the images.
_VIT: tuple[tuple[str, Mapping[str, Any], Any], ...] = (
    *((name, _PLAIN, IMAGE) for name in ("vit:ViT", "simple_vit:SimpleViT", "deepvit:DeepViT")),
    *((f"{name}:ViT", _PLAIN, IMAGE) for name in ("vit_for_small_dataset", "parallel_vit")),
    *((f"{name}:ViT", _PLAIN, IMAGE) for name in ("learnable_memory_vit", "mp3")),
    *((f"{name}:ViT", _PLAIN, IMAGE) for name in ("vit_with_patch_merger", "vit_with_decorr")),
    ("vit_with_patch_dropout:ViT", _PLAIN, IMAGE),
    ("simple_vit_with_register_tokens:SimpleViT", _PLAIN, IMAGE),
    ("simple_vit_with_patch_dropout:SimpleViT", _PLAIN, IMAGE),
    ("simple_vit_with_value_residual:SimpleViT", _PLAIN, IMAGE),
    ("simple_vit_with_fft:SimpleViT", _PLAIN | {"freq_patch_size": 8}, IMAGE),
    ("distill:DistillableViT", _PLAIN, IMAGE),
    ("ats_vit:ViT", _PLAIN | {"max_tokens_per_depth": (8, 4)}, IMAGE),
    ("normalized_vit:nViT", _PLAIN, IMAGE),
    ("rvt:RvT", _PLAIN, IMAGE),
    ("jumbo_vit:JumboViT", _PLAIN | _JUMBO, IMAGE),
    ("cait:CaiT", _CAIT, IMAGE),
    ("xcit:XCiT", _CAIT, IMAGE),
    ("pit:PiT", _PLAIN | {"patch_size": 8, "depth": (1, 1, 1)}, IMAGE),
    ("cross_vit:CrossViT", {"image_size": 64, "depth": 1} | _CROSS, IMAGE),
    ("cvt:CvT", _CVT, IMAGE),
    ("mobile_vit:MobileViT", _MOBILE | {"image_size": (64, 64)}, IMAGE),
    ("levit:LeViT", _LEVIT, square(224)),
    ("levit:LeViT distilled", _LEVIT | {"num_distill_classes": 9}, square(224)),
    ("twins_svt:TwinsSVT", _TWINS, square(224)),
    ("regionvit:RegionViT", _WINDOWS | {"window_size": 7}, square(224)),
    ("max_vit:MaxViT", _MAX, square(224)),
    ("max_vit_with_registers:MaxViT", _MAX, square(224)),
    ("sep_vit:SepViT", _SCALABLE | {"dim_head": 8, "window_size": 7}, square(224)),
    (
        "scalable_vit:ScalableViT",
        _SCALABLE
        | {"ssa_dim_key": (8, 8, 8, 8), "reduction_factor": (8, 4, 2, 1)}
        | {"window_size": (64, 32, None, None)},
        square(256),
    ),
    (
        "nest:NesT",
        {"image_size": 64, "patch_size": 4, "dim": 16, "heads": 2, "num_hierarchies": 3}
        | {"block_repeats": (1, 1, 1)},
        IMAGE,
    ),
    (
        "t2t:T2TViT",
        {"image_size": 64, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}
        | {"t2t_layers": ((7, 4), (3, 2), (3, 2))},
        IMAGE,
    ),
    (
        "cct:CCT",
        _CCT | {"img_size": 64, "kernel_size": 7, "padding": 3, "num_layers": 2, "mlp_ratio": 2.0},
        IMAGE,
    ),
    (
        "cct_3d:CCT",
        _CCT
        | {"img_size": 32, "num_frames": 4, "frame_kernel_size": 3, "kernel_size": 3}
        # Its convolutions leave out the first frame.
        | {"padding": 1, "num_layers": 1, "mlp_ratio": 1.0},
        noise(2, 3, 4, 32, 32),
    ),
    ("na_vit:NaViT", _PLAIN, lambda: ([torch.randn(3, 64, 64), torch.randn(3, 32, 64)],)),
    (
        "na_vit_nested_tensor:NaViT",
        _PLAIN,
        lambda: ([torch.randn(3, 64, 64), torch.randn(3, 32, 64)],),
    ),
    ("vit_3d:ViT", _CLIP | {"depth": 1}, noise(2, 3, 4, 32, 32)),
    ("simple_vit_3d:SimpleViT", _CLIP | {"depth": 1}, noise(2, 3, 4, 32, 32)),
    ("vivit:ViViT", _CLIP | {"spatial_depth": 1, "temporal_depth": 1}, noise(2, 3, 4, 32, 32)),
    (
        "vit_1d:ViT",
        {"seq_len": 32, "patch_size": 8, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 48},
        noise(2, 3, 32),
    ),
    (
        "simple_vit_1d:SimpleViT",
        {"seq_len": 32, "patch_size": 8, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 48},
        noise(2, 3, 32),
    ),
    (
        "vit_nd:ViTND",
        {"ndim": 2, "input_shape": 64, "patch_size": 16, "dim": 32, "depth": 1, "heads": 2}
        | {"mlp_dim": 48},
        IMAGE,
    ),
)


def _vit() -> dict[str, Subject]:
    return {
        name: Subject(of(f"vit_pytorch.{name.split()[0]}", **settings), inputs)
        for name, settings, inputs in _VIT
    }


_SIDES = {"nasnetalarge": 331, "pnasnet5large": 331, "xception": 299, "inceptionv4": 299}
_SIDES |= {"inceptionresnetv2": 299, "polynet": 331}
_CADENE = words(
    """
se_resnet50 se_resnet101 se_resnext50_32x4d se_resnext101_32x4d senet154 dpn68 dpn92 nasnetamobile
nasnetalarge pnasnet5large xception inceptionv4 inceptionresnetv2 bninception polynet
resnext101_32x4d fbresnet152 cafferesnet101
"""
)


def _cadene(name: str) -> Subject:
    # Its "imagenet" weights are never asked for; without, any number of classes is taken.
    make = of(f"pretrainedmodels:{name}", pretrained=None)
    return Subject(make, square(_SIDES.get(name, 224)), meta=True)


_YOLO = words(
    """
yolov3-tiny yolov5n yolov6n yolov8n yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-cls yolov9t
yolov10n yolo11n yolo11n-seg yolo11n-cls yolo12n
"""
)


def _yolo(name: str) -> Subject:
    task = name.partition("-")[2]
    kinds = {"cls": "Classification", "seg": "Segmentation", "pose": "Pose", "obb": "OBB"}
    kind = f"ultralytics.nn.tasks:{kinds.get(task, 'Detection')}Model"
    return Subject(of(kind, f"{name}.yaml", to="nc", verbose=False), square(64, batch=1))


_VOXELS = noise(1, 1, 32, 32, 32)
_NETS = "monai.networks.nets"
_PLANE: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1}
_VOLUME: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1}
_MED_VIT: dict[str, Any] = {"hidden_size": 48, "mlp_dim": 60, "num_layers": 1, "num_heads": 4}
_MED_VIT |= {"classification": True}


def _net(name: str, inputs: Any, *args: Any, to: str = "out_channels", **settings: Any) -> Subject:
    large = settings.pop("meta", False)
    excuse = {key: settings.pop(key) for key in ("apart", "why") if key in settings}
    return Subject(of(f"{_NETS}:{name}", *args, to=to, **settings), inputs, meta=large, **excuse)


def _dints(classes: int) -> nn.Module:
    space = resolve_name(f"{_NETS}.dints:TopologySearch")
    space = space(spatial_dims=2, num_blocks=2, num_depths=3)
    make = resolve_name(f"{_NETS}:DiNTS")
    model: nn.Module = make(space, in_channels=3, num_classes=classes, spatial_dims=2)
    return model


_STEPS = {"channels": (4, 8, 16), "strides": (2, 2)}
_MONAI = {
    "UNet": _net("UNet", _VOXELS, **_VOLUME, **_STEPS),
    "AttentionUnet": _net("AttentionUnet", square(32, 1), **_PLANE, **_STEPS),
    "BasicUNet": _net("BasicUNet", square(64, 1), features=(4, 8, 16, 20, 24, 4), **_PLANE),
    "BasicUNetPlusPlus": _net(
        "BasicUNetPlusPlus",
        square(64, 1),
        features=(4, 8, 16, 20, 24, 4),
        apart=("final_conv_0_[123].*",),
        why=UNSEEN,
        **_PLANE,
    ),
    "DynUNet": _net(
        *("DynUNet", _VOXELS),
        **_VOLUME,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[4, 8, 12],
        deep_supervision=True,
        deep_supr_num=1,
    ),
    "SegResNet": _net("SegResNet", _VOXELS, init_filters=8, **_VOLUME),
    "SegResNetDS": _net("SegResNetDS", _VOXELS, init_filters=8, dsdepth=2, **_VOLUME),
    "VNet": _net(
        "VNet",
        noise(1, 1, 64, 64, 64),
        meta=True,
        apart=("out_tr.conv_block.*",),
        why=WIDTH,
        **_VOLUME,
    ),
    "UNETR": _net(
        *("UNETR", _VOXELS),
        in_channels=1,
        img_size=(32, 32, 32),
        feature_size=8,
        hidden_size=48,
        mlp_dim=60,
        num_heads=4,
    ),
    "SwinUNETR": _net("SwinUNETR", square(64, 1), feature_size=12, **_PLANE),
    "HighResNet": _net("HighResNet", _VOXELS, meta=True, **_VOLUME),
    "FlexibleUNet": _net(
        "FlexibleUNet", IMAGE, in_channels=3, backbone="efficientnet-b0", spatial_dims=2
    ),
    "MedNeXtS": _net("MedNeXtS", square(64, 1), meta=True, **_PLANE),
    "Quicknat": _net("Quicknat", square(64, 1), to="num_classes", num_channels=1, num_filters=8),
    "DiNTS": Subject(_dints, square(32, batch=1)),
    "DiffusionModelUNet": _net(
        *("DiffusionModelUNet", lambda: (torch.randn(1, 1, 16, 16), torch.tensor([3]))),
        channels=(8, 16),
        attention_levels=(False, True),
        num_res_blocks=1,
        norm_num_groups=4,
        num_head_channels=8,
        **_PLANE,
    ),
    "DenseNet121": _net("DenseNet121", _VOXELS, meta=True, **_VOLUME),
    "DenseNet201": _net("DenseNet201", square(64, 1), meta=True, **_PLANE),
    "EfficientNetBN": _net(
        "EfficientNetBN", IMAGE, "efficientnet-b0", to="num_classes", pretrained=False
    ),
    "SEResNet50": _net("SEResNet50", IMAGE, to="num_classes", spatial_dims=2, in_channels=3),
    "SEResNext50": _net("SEResNext50", IMAGE, to="num_classes", spatial_dims=2, in_channels=3),
    "resnet18": _net("resnet18", _VOXELS, to="num_classes", spatial_dims=3, n_input_channels=1),
    "resnet50": _net("resnet50", _VOXELS, to="num_classes", spatial_dims=3, n_input_channels=1),
    "ViT": _net(
        *("ViT", _VOXELS),
        to="num_classes",
        in_channels=1,
        img_size=(32, 32, 32),
        **{"patch_size": (16, 16, 16), **_MED_VIT},
    ),
    "ViT without tanh": _net(
        *("ViT", square(32)),
        to="num_classes",
        in_channels=3,
        img_size=(32, 32),
        patch_size=(16, 16),
        **{"spatial_dims": 2, "post_activation": None, **_MED_VIT},
    ),
    "Classifier": _net(
        *("Classifier", square(32, 1)),
        to="classes",
        in_shape=(1, 32, 32),
        channels=(4, 8),
        strides=(2, 2),
    ),
    "MILModel": _net(
        *("MILModel", noise(2, 3, 3, 64, 64)),
        to="num_classes",
        mil_mode="att",
        pretrained=False,
        backbone="resnet18",
    ),
    "TorchVisionFCModel": _net(
        "TorchVisionFCModel", IMAGE, "resnet18", to="num_classes", use_conv=True, pool=None
    ),
}


def _video(name: str, inputs: Any, **settings: Any) -> Subject:
    make = of(f"pytorchvideo.models.hub:{name}", to="model_num_class", pretrained=False, **settings)
    return Subject(make, inputs, meta=True)


_FRAMES = noise(1, 3, 8, 256, 256)
_VIDEO = {name: _video(name, _FRAMES) for name in ("slow_r50", "c2d_r50", "i3d_r50")}
_VIDEO |= {
    "csn_r101": _video("csn_r101", noise(1, 3, 32, 256, 256)),
    "r2plus1d_r50": _video("r2plus1d_r50", noise(1, 3, 16, 256, 256)),
    "x3d_xs": _video("x3d_xs", noise(1, 3, 4, 182, 182)),
    "x3d_s": _video("x3d_s", noise(1, 3, 13, 182, 182)),
}

_RESNEST = each(
    ("resnest50", "resnest101", "resnest200", "resnest269"),
    lambda name: Subject(of(f"resnest.torch:{name}"), IMAGE, meta=True),
)
_BLURRED = each(
    (
        *("alexnet", "vgg11", "vgg16_bn", "resnet18", "resnet34", "resnet50", "wide_resnet50_2"),
        *("resnext50_32x4d", "densenet121", "densenet169", "mobilenet_v2"),
    ),
    lambda name: Subject(
        of(f"antialiased_cnns:{name}", pretrained=False),
        square(224) if name[:3] in ("ale", "vgg") else IMAGE,
        meta=True,
    ),
)
_PERSONS = words(
    """
resnet50 resnet50_fc512 se_resnet50 densenet121 inceptionresnetv2 inceptionv4 xception osnet_x0_25
osnet_ibn_x1_0 osnet_ain_x0_25 mlfn hacnn resnet50mid squeezenet1_0 shufflenet mobilenetv2_x1_0
pcb_p6 mudeep resnet50_ibn_a
"""
)


def _person(name: str) -> Subject:
    make = of("torchreid.reid.models:build_model", name, pretrained=False, use_gpu=False)
    # In eval mode it gives features; only in train mode there are classes.
    shapes = {"hacnn": (160, 64), "pcb_p6": (384, 128), "inceptionv4": (299, 299)}
    shapes |= {"inceptionresnetv2": (299, 299), "xception": (299, 299), "densenet121": (256, 128)}
    return Subject(make, noise(2, 3, *shapes.get(name, (256, 128))))


def _masks(count: int) -> nn.Module:
    kind = resolve_name("segment_anything.modeling:TwoWayTransformer")
    inner = kind(depth=1, embedding_dim=32, mlp_dim=24, num_heads=2)
    decoder = resolve_name("segment_anything.modeling:MaskDecoder")
    model: nn.Module = decoder(transformer_dim=32, transformer=inner, num_multimask_outputs=count)
    return model


def _prompted() -> dict[str, Any]:
    return {
        "image_embeddings": torch.randn(1, 32, 8, 8),
        "image_pe": torch.randn(1, 32, 8, 8),
        "sparse_prompt_embeddings": torch.randn(2, 3, 32),
        "dense_prompt_embeddings": torch.randn(2, 32, 8, 8),
        "multimask_output": True,
    }


def _projected(name: str, *widths: int) -> Make:
    kind = f"lightly.models.modules.heads:{name}"
    return lambda count: nn.Sequential(nn.Flatten(), resolve_name(kind)(*widths, count))


_FACES = of("facenet_pytorch:InceptionResnetV1", classify=True)
_XRAYS = of("torchxrayvision.models:DenseNet", in_channels=1)
_MIXER = of("mlp_mixer_pytorch:MLPMixer", image_size=32, channels=3, patch_size=8, dim=16, depth=1)
_PATCHES = noise(4, 3, 4, 4)

IMAGES = {
    "pytorchcv": Library(("pytorchcv",), each(_CV, _cv)),
    "vit-pytorch": Library(("vit-pytorch", "einops", "einx"), _vit()),
    "pretrainedmodels": Library(("pretrainedmodels", "munch"), each(_CADENE, _cadene)),
    "ultralytics": Library(("ultralytics", "ultralytics-thop"), each(_YOLO, _yolo)),
    "monai": Library(("monai", "einops"), _MONAI),
    "pytorchvideo": Library(("pytorchvideo", "fvcore", "iopath", "yacs"), _VIDEO),
    "torchreid": Library(("torchreid",), each(_PERSONS, _person)),
    "resnest": Library(("resnest", "fvcore", "iopath", "yacs"), _RESNEST),
    "antialiased-cnns": Library(("antialiased-cnns",), _BLURRED),
    "facenet": Library(("facenet-pytorch",), {"InceptionResnetV1": Subject(_FACES, square(160))}),
    "torchxrayvision": Library(
        ("torchxrayvision", "scikit-image"), {"DenseNet": Subject(_XRAYS, square(64, 1))}
    ),
    "segment-anything": Library(("segment-anything",), {"MaskDecoder": Subject(_masks, _prompted)}),
    "lightly": Library(
        ("lightly",),
        {
            "SimSiamProjectionHead": Subject(_projected("SimSiamProjectionHead", 48, 32), _PATCHES),
            "SwaVPrototypes": Subject(_projected("SwaVPrototypes", 48), _PATCHES),
            "DINOProjectionHead": Subject(_projected("DINOProjectionHead", 48, 32, 16), _PATCHES),
        },
    ),
    "mlp-mixer": Library(
        ("mlp-mixer-pytorch", "einops"), {"MLPMixer": Subject(_MIXER, square(32))}
    ),
}
