"""Models of words, sounds, signals and tables that nobody wrote a plugin for."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.wild_models import (
    UNSEEN,
    VOCABULARY,
    WIDTH,
    Library,
    Make,
    Subject,
    each,
    noise,
    of,
    resolve_name,
    square,
    tokens,
    words,
)

# As few words as the smaller of the twins has.
FEW = tokens(7)
LONG = tokens(7, 2, 16)


def _layers(kind: str, **settings: Any) -> Any:
    return resolve_name(f"x_transformers:{kind}")(heads=2, **{"dim": 32, "depth": 1} | settings)


def _wrapped(
    kind: str, to: str, wrapper: str = "TransformerWrapper", **settings: Any
) -> Callable[..., Make]:
    def layered(**inner: Any) -> Make:
        def make(classes: int) -> nn.Module:
            layers = _layers(kind, **inner)
            wrap = resolve_name(f"x_transformers:{wrapper}")
            model: nn.Module = wrap(**{to: classes}, attn_layers=layers, **settings)
            return model

        return make

    return layered


_TALL = {"rotary_pos_emb": True, "attn_qk_norm": True, "ff_glu": True, "use_rmsnorm": True}
_SHORT = {"max_seq_len": 16}
_WORDS = {"num_tokens": 30, **_SHORT}
_READ = ("token_emb.emb.weight",)
_X = {
    "decoder of words": Subject(
        _wrapped("Decoder", "num_tokens", **_SHORT)(), FEW, apart=_READ, why=VOCABULARY
    ),
    "encoder, tied": Subject(
        _wrapped("Encoder", "num_tokens", tie_embedding=True, **_SHORT)(), FEW
    ),
    "encoder, class token": Subject(
        _wrapped("Encoder", "logits_dim", use_cls_token=True, **_WORDS)(), tokens()
    ),
    "decoder, rotary": Subject(
        _wrapped("Decoder", "logits_dim", **_WORDS)(dim=64, **_TALL), tokens()
    ),
    "decoder, memory": Subject(
        _wrapped("Decoder", "logits_dim", max_mem_len=8, **_WORDS)(rel_pos_bias=True), tokens()
    ),
    "ViT": Subject(
        _wrapped("Encoder", "num_classes", "ViTransformerWrapper", image_size=32, patch_size=8)(),
        square(32),
    ),
    "continuous": Subject(
        _wrapped("Encoder", "dim_out", "ContinuousTransformerWrapper", dim_in=8, **_SHORT)(),
        noise(2, 8, 8),
    ),
}
_LATENT: dict[str, Any] = {"num_latents": 6, "latent_dim": 16, "cross_heads": 1}
_LATENT |= {"latent_heads": 2, "cross_dim_head": 8, "latent_dim_head": 8}
_PERCEIVER = {
    "Perceiver": Subject(
        of(
            "perceiver_pytorch:Perceiver",
            input_channels=3,
            input_axis=2,
            num_freq_bands=2,
            max_freq=4.0,
            **{"depth": 2, "weight_tie_layers": True, **_LATENT},
        ),
        noise(2, 16, 16, 3),
    ),
    "PerceiverIO": Subject(
        of(
            "perceiver_pytorch:PerceiverIO",
            dim=8,
            queries_dim=12,
            depth=1,
            to="logits_dim",
            **_LATENT,
        ),
        lambda: {"data": torch.randn(2, 10, 8), "queries": torch.randn(5, 12)},
    ),
}


def _language(path: str, apart: str = "token_emb.weight", **settings: Any) -> dict[str, Subject]:
    settings = {"dim": 16, "depth": 1, "max_seq_len": 16, "heads": 2} | settings
    settings = {name: value for name, value in settings.items() if value is not None}
    make = of(path, to="num_tokens", **settings)
    return {path.partition(":")[2]: Subject(make, LONG, apart=(apart,), why=VOCABULARY)}


def _sounding(path: str) -> Any:
    """What stands at a path, where torchaudio's compiled part may be for another torch.

    Nothing here needs that part; where it cannot be loaded torchaudio is imported without it.
    """
    if "torchaudio" not in sys.modules:
        try:
            importlib.import_module("torchaudio")
        except (OSError, RuntimeError):
            for loaded in [module for module in sys.modules if module.startswith("torchaudio")]:
                del sys.modules[loaded]
            nothing = types.ModuleType("torchaudio._extension")
            said = ("_IS_TORCHAUDIO_EXT_AVAILABLE", "_IS_RIR_AVAILABLE", "_IS_ALIGN_AVAILABLE")
            vars(nothing).update(dict.fromkeys(said, False), lazy_import_sox_ext=None)
            vars(nothing)["fail_if_no_align"] = lambda function: function
            sys.modules[nothing.__name__] = nothing
            sys.modules[f"{nothing.__name__}.utils"] = types.ModuleType("utils")
    return resolve_name(path)


def _audio(name: str) -> Any:
    return _sounding(f"torchaudio.models:{name}")


def _wave(classes: int) -> nn.Module:
    layers = [(16, 10, 5), (16, 3, 2)]
    sizes = (32, 0.1, 3, 2, 1, 4, 0.1, 24, 0.1, 0.1, False, 0.1)
    model: nn.Module = _audio("wav2vec2_model")("group_norm", layers, False, *sizes, classes)
    return model


def _transducer(classes: int) -> nn.Module:
    model: nn.Module = _audio("emformer_rnnt_model")(
        input_dim=16,
        encoding_dim=24,
        num_symbols=classes,
        segment_length=4,
        right_context_length=0,
        time_reduction_input_dim=8,
        time_reduction_stride=2,
        transformer_num_heads=2,
        transformer_ffn_dim=12,
        transformer_num_layers=1,
        transformer_dropout=0.0,
        transformer_activation="relu",
        transformer_left_context_length=2,
        transformer_max_memory_size=0,
        transformer_weight_init_scale_strategy="depthwise",
        transformer_tanh_on_mem=True,
        symbol_embedding_dim=8,
        num_lstm_layers=1,
        lstm_layer_norm=True,
        lstm_layer_norm_epsilon=1e-3,
        lstm_dropout=0.0,
    )
    return model


_RNN_WAVE = {"upsample_scales": [2, 2, 2], "hop_length": 8, "n_res_block": 1, "n_rnn": 16}
_RNN_WAVE |= {"n_fc": 16, "kernel_size": 5, "n_freq": 10, "n_hidden": 12, "n_output": 14}
_SOUNDS = {
    "DeepSpeech": Subject(lambda n: _audio("DeepSpeech")(16, 24, n_class=n), noise(2, 1, 20, 16)),
    "Wav2Letter": Subject(
        lambda n: _audio("Wav2Letter")(num_classes=n, input_type="mfcc", num_features=13),
        noise(2, 13, 80),
    ),
    "WaveRNN": Subject(
        lambda n: _audio("WaveRNN")(n_classes=n, **_RNN_WAVE),
        lambda: (torch.rand(2, 1, 48), torch.rand(2, 1, 10, 10)),
    ),
    "wav2vec2_model": Subject(_wave, noise(2, 800)),
    "emformer_rnnt_model": Subject(
        _transducer,
        lambda: (
            torch.rand(2, 12, 16),
            torch.tensor([12, 12]),
            torch.randint(0, 6, (2, 3)),
            torch.tensor([3, 2]),
        ),
        apart=("predictor.embedding.weight",),
        why="the symbols that it makes are its input as well, whose embedding stays",
    ),
}

_SERIES = noise(4, 4, 24)
# What else than channels and classes they are given.
_TSAI: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("FCN", "ResNet", "XceptionTime", "RNN", "LSTM", "GRU", "TCN", "ResCNN"), ()),
    **dict.fromkeys(("FCNPlus", "ResNetPlus", "InceptionTime", "InceptionTimePlus"), ()),
    **dict.fromkeys(("TransformerModel", "xresnet1d18"), ()),
    **dict.fromkeys(("LSTM_FCN", "GRU_FCN", "MLP", "OmniScaleCNN", "XCM", "gMLP"), (24,)),
    **dict.fromkeys(("TST", "TSTPlus", "TSiTPlus", "mWDN", "ConvTran", "RNNPlus"), (24,)),
}


def _series(name: str) -> Subject:
    def make(classes: int) -> nn.Module:
        model: nn.Module = resolve_name(f"tsai.models.all:{name}")(4, classes, *_TSAI[name])
        return model

    return Subject(make, _SERIES)


_BRAIN = words(
    """
ShallowFBCSPNet Deep4Net EEGNet EEGConformer ATCNet EEGInceptionERP USleep SleepStagerChambon2018
TIDNet BIOT EEGNeX CTNet FBCNet MSVTNet TSception EEGITNet ContraWR SPARCNet AttentionBaseNet
EEGTCNet SyncNet
"""
)


_LEFT = {
    "USleep": (("final_layer.0.*",), WIDTH),
    "MSVTNet": (("branch_head.*",), UNSEEN),
}


def _sounded(kind: str, settings: dict[str, int], classes: int) -> nn.Module:
    model: nn.Module = _sounding(kind)(n_outputs=classes, **settings)
    return model


def _brain(name: str) -> Subject:
    settings = {"n_chans": 4, "n_times": 400, "sfreq": 100}
    kind = f"braindecode.models:{name}"
    apart, why = _LEFT.get(name, ((), ""))
    make = partial(_sounded, kind, settings)
    return Subject(make, noise(2, 4, 400), apart=apart, why=why)


def _kinds() -> tuple[torch.Tensor, torch.Tensor]:
    columns = [torch.randint(0, size, (4,)) for size in (5, 6, 8)]
    return torch.stack(columns, 1), torch.randn(4, 6)


def _turned() -> tuple[torch.Tensor, torch.Tensor]:
    kinds, numbers = _kinds()
    return numbers, kinds


_ROWS = noise(4, 6)
_STEPS = {"n_d": 8, "n_a": 8, "n_steps": 2}


def _tabnet(name: str, second: bool = False, **settings: Any) -> Make:
    def make(classes: int) -> nn.Module:
        outputs = [classes, 4] if second else classes
        kind = resolve_name(f"pytorch_tabnet.tab_network:{name}")
        groups = torch.eye(12)
        model: nn.Module = kind(12, outputs, group_attention_matrix=groups, **_STEPS, **settings)
        return model

    return make


def _fitted(classes: int) -> nn.Module:
    kind = resolve_name("rtdl_revisiting_models:FTTransformer")
    sizes = {"n_cont_features": 6, "cat_cardinalities": [5, 6, 8]}
    model: nn.Module = kind(d_out=classes, **sizes, **kind.get_default_kwargs())
    return model


_KINDS = {"categories": (5, 6, 8), "num_continuous": 6, "dim": 16, "depth": 1, "heads": 2}
_DROPS = {"dropout_first": 0.1, "dropout_second": 0.1}
_AWD = {"emb_sz": 12, "n_hid": 14, "n_layers": 2, "pad_token": 1, "bidir": False}
_AWD |= dict.fromkeys(("output_p", "hidden_p", "input_p", "embed_p", "weight_p"), 0.1)


def _awd(maker: str, **settings: Any) -> Callable[..., nn.Module]:
    make = resolve_name(f"fastai.text.models.core:{maker}")
    kind = resolve_name("fastai.text.models.awdlstm:AWD_LSTM")
    return partial(make, kind, config=_AWD | settings)


def _fast(path: str, *args: Any, **settings: Any) -> Make:
    """What fastai puts behind the body of a network of torchvision."""

    def make(classes: int) -> nn.Module:
        body = resolve_name("torchvision.models:resnet18")
        model: nn.Module = resolve_name(path)(body, classes, *args, pretrained=False, **settings)
        return model

    return make


_FASTAI = {
    "TabularModel": Subject(
        lambda n: resolve_name("fastai.tabular.model:TabularModel")(
            [(5, 3), (6, 3), (8, 4)], 6, n, [16, 12]
        ),
        _kinds,
    ),
    "AWD_LSTM, classifier": Subject(
        lambda n: _awd("get_text_classifier")(60, n), tokens(60, 3, 20)
    ),
    "AWD_LSTM, words": Subject(
        lambda n: _awd("get_language_model", tie_weights=True, out_bias=True)(n), tokens(7, 3, 20)
    ),
    "xresnet18": Subject(of("fastai.vision.models.xresnet:xresnet18", to="n_out"), square(64)),
    "create_vision_model": Subject(_fast("fastai.vision.learner:create_vision_model"), square(64)),
    "create_unet_model": Subject(
        _fast("fastai.vision.learner:create_unet_model", (64, 64)), square(64)
    ),
}
_TABNET = {
    "TabNet": Subject(
        _tabnet("TabNet", cat_idxs=[0, 1], cat_dims=[3, 4], cat_emb_dim=[2, 2]),
        lambda: torch.cat([torch.randint(0, 3, (6, 2)).float(), torch.randn(6, 10)], 1),
    ),
    "TabNetNoEmbeddings": Subject(_tabnet("TabNetNoEmbeddings"), noise(6, 12)),
    "TabNetNoEmbeddings, two tasks": Subject(_tabnet("TabNetNoEmbeddings", True), noise(6, 12)),
}
_RTDL = {
    "MLP": Subject(
        of("rtdl:MLP.make_baseline", to="d_out", d_in=6, d_layers=[16, 12], dropout=0.1), _ROWS
    ),
    "ResNet": Subject(
        of(
            *("rtdl:ResNet.make_baseline",),
            **{"to": "d_out", "d_in": 6, "n_blocks": 2, "d_main": 16, "d_hidden": 12, **_DROPS},
        ),
        _ROWS,
    ),
    "FTTransformer": Subject(
        of(
            *("rtdl:FTTransformer.make_default",),
            to="d_out",
            n_num_features=6,
            cat_cardinalities=[5, 6, 8],
            n_blocks=1,
            last_layer_query_idx=[-1],
        ),
        _turned,
    ),
}
_REVISITED = {
    "MLP": Subject(
        of("rtdl_revisiting_models:MLP", to="d_out", d_in=6, n_blocks=2, d_block=16, dropout=0.1),
        _ROWS,
    ),
    "ResNet": Subject(
        of(
            *("rtdl_revisiting_models:ResNet",),
            to="d_out",
            d_in=6,
            n_blocks=2,
            d_block=16,
            d_hidden=None,
            d_hidden_multiplier=2.0,
            dropout1=0.1,
            dropout2=0.1,
        ),
        _ROWS,
    ),
    "FTTransformer": Subject(_fitted, _turned),
}
_TAB = {
    "TabTransformer": Subject(
        lambda n: resolve_name("tab_transformer_pytorch:TabTransformer")(
            dim_out=n, mlp_act=nn.ReLU(), **_KINDS
        ),
        _kinds,
    ),
    "FTTransformer": Subject(
        of("tab_transformer_pytorch:FTTransformer", to="dim_out", **_KINDS), _kinds
    ),
}


def _metric(name: str) -> Subject:
    make = of(f"pytorch_metric_learning.losses:{name}", embedding_size=8)
    return Subject(make, lambda: (torch.randn(4, 8), torch.randint(0, 7, (4,))))


def _reader(path: str, *sizes: int, **settings: Any) -> Make:
    def make(classes: int) -> nn.Module:
        model: nn.Module = resolve_name(path)(*sizes, classes, **settings)
        return model

    return make


def _lines() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 1, 32, 100), torch.zeros(2, 5, dtype=torch.int64)


_OCR = {
    "generation 1": Subject(_reader("easyocr.model.model:Model", 1, 32, 24), _lines),
    "generation 2": Subject(_reader("easyocr.model.vgg_model:Model", 1, 32, 24), _lines),
}


def _mamba(classes: int) -> nn.Module:
    config = resolve_name("mambapy.mamba:MambaConfig")(d_model=16, n_layers=1)
    body = resolve_name("mambapy.mamba:Mamba")(config)
    return nn.Sequential(nn.Embedding(30, 16), body, nn.Linear(16, classes))


def _conformer(classes: int) -> nn.Module:
    kind = resolve_name("conformer:Conformer")
    body = kind(dim=16, depth=1, dim_head=8, heads=2, conv_kernel_size=7)
    return nn.Sequential(body, nn.Linear(16, classes))


_FASTAI_NEEDS = (
    *("fastcore", "fastdownload", "fastprogress", "fasttransform", "plum-dispatch"),
    *("python-fasthtml", "python-multipart", "spacy"),
)

SEQUENCES = {
    "x-transformers": Library(("x-transformers", "einops", "einx", "loguru"), _X),
    "perceiver": Library(("perceiver-pytorch", "einops"), _PERCEIVER),
    "performer": Library(
        ("performer-pytorch", "einops", "local-attention", "axial-positional-embedding"),
        _language("performer_pytorch:PerformerLM", dim=32, depth=1),
    ),
    "linformer": Library(
        ("linformer",),
        _language("linformer:LinformerLM", seq_len=16, k=4, max_seq_len=None),
    ),
    "reformer": Library(
        ("reformer-pytorch", "einops", "local-attention", "product-key-memory"),
        _language("reformer_pytorch:ReformerLM", bucket_size=4, causal=True),
    ),
    "linear-attention": Library(
        ("linear-attention-transformer", "einops", "local-attention", "linformer"),
        _language("linear_attention_transformer:LinearAttentionTransformerLM"),
    ),
    "h-transformer": Library(
        ("h-transformer-1d", "einops", "rotary-embedding-torch"),
        _language("h_transformer_1d:HTransformer1D", dim_head=8, block_size=4),
    ),
    "routing": Library(
        ("routing-transformer", "einops", "local-attention"),
        _language(
            "routing_transformer:RoutingTransformerLM",
            apart="*token_emb*",
            causal=True,
            window_size=8,
        ),
    ),
    "mambapy": Library(("mambapy",), {"Mamba and a layer": Subject(_mamba, tokens())}),
    "conformer": Library(
        ("conformer", "einops"), {"Conformer and a layer": Subject(_conformer, noise(2, 12, 16))}
    ),
    "torchaudio": Library(("torchaudio",), _SOUNDS),
    "fastai": Library(("fastai", *_FASTAI_NEEDS), _FASTAI),
    "tsai": Library(
        ("tsai", "fastai", *_FASTAI_NEEDS, "imbalanced-learn", "sklearn-compat", "pyts"),
        each(_TSAI, _series),
    ),
    "braindecode": Library(
        (
            *("braindecode", "mne", "mne-bids", "skorch", "docstring-inheritance", "h5py", "wfdb"),
            *("linear-attention-transformer", "local-attention", "linformer", "torchaudio"),
        ),
        each(_BRAIN, _brain),
    ),
    "pytorch-tabnet": Library(("pytorch-tabnet",), _TABNET),
    "rtdl": Library(("rtdl",), _RTDL),
    "rtdl-revisiting-models": Library(("rtdl_revisiting_models",), _REVISITED),
    "tab-transformer": Library(
        ("tab-transformer-pytorch", "einops", "hyper-connections", "x-mlps-pytorch"), _TAB
    ),
    "easyocr": Library(("easyocr", "python-bidi"), _OCR),
    "metric-learning": Library(
        ("pytorch-metric-learning",),
        each(("ArcFaceLoss", "NormalizedSoftmaxLoss", "SoftTripleLoss"), _metric),
    ),
}
