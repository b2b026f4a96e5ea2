"""Tiny stand-ins for published encoders: the folder of a checkpoint for each family of transformers.

A family is a `model_type`. Its own configuration class is shrunk by the fields that it has, so that a new family needs
a line here only where that is not enough. Weights are random, and large enough for every input to matter.
"""

import dataclasses
from pathlib import Path

SAMPLING_RATE = 16_000
IMAGE_SIZE = 32
MAX_AUDIO_SECONDS = 1.0
WORDS = ("a", "red", "green", "cat", "dog", "runs", "sleeps", "loud", "quiet", "and", "the", "small")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What a field of this name becomes wherever a configuration has it.
SHRUNK = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "emb_dim": 32, "dim": 32, "n_embd": 32, "embedding_size": 16,
    "num_hidden_layers": 2, "n_layers": 2, "n_layer": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_attention_heads": 4, "n_heads": 4, "n_head": 4, "num_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "intermediate_size": 48, "hidden_dim": 48, "d_ff": 48,
    "d_inner": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "n_positions": 64,
    "image_size": IMAGE_SIZE, "patch_size": 8,
    "conv_dim": [16, 16], "conv_kernel": [10, 8], "conv_stride": [5, 4], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "num_codevectors_per_group": 8,
    "codevector_dim": 16, "proj_codevector_dim": 16, "mask_time_length": 2, "mask_time_prob": 0.0,
    "num_mel_bins": 16, "attention_window": 8, "block_size": 4, "num_buckets": 64, "classifier_proj_size": 16,
}  # fmt: skip
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4}
FOUR_STAGES = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
FOUR_HEADS = {**FOUR_STAGES, "num_attention_heads": [1, 2, 4, 4], "num_encoder_blocks": 4}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CLIP = {"projection_dim": 16}
# Family -> fields that shrinking by name does not settle.
FIELDS = {
    "big_bird": {"attention_type": "block_sparse"},
    "convbert": {"head_ratio": 2, "conv_kernel_size": 3},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"],
                   "conv_kernel_size": 3, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "esm": {"position_embedding_type": "rotary", "pad_token_id": 0, "mask_token_id": 4},
    "eurobert": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8},
    "flaubert": {"n_langs": 1}, "xlm": {"n_langs": 1},
    "longformer": {"attention_window": [8, 8]},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0, "cls_token_id": 2,
                   "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "mra": {"num_block_per_row": 2}, "xmod": {"default_language": "en_XX"},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "squeezebert": {"embedding_size": 32},
    "xlnet": {"d_head": 8},
    "bit": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4},
    "convnext": {"hidden_sizes": [16, 24], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [16, 24], "depths": [1, 1], "num_stages": 2},
    "cvt": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "dinov3_convnext": FOUR_STAGES,
    "dinov3_vit": {"num_register_tokens": 2},
    "swin": SWIN, "swinv2": SWIN, "donut-swin": SWIN,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    "focalnet": {"embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32], "focal_levels": [1, 1],
                 "focal_windows": [3, 3], "patch_size": 4},
    "hgnet_v2": {"stem_channels": [3, 8, 12], "depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40],
                 "stage_in_channels": [12, 16, 24, 32], "stage_mid_channels": [8, 8, 8, 8],
                 "stage_out_channels": [16, 24, 32, 40], "stage_num_blocks": [1, 1, 1, 1],
                 "stage_numb_of_layers": [1, 1, 1, 1], "embedding_size": 12},
    "hiera": {"embed_dim": 16, "image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4],
              "patch_padding": [3, 3], "depths": [1, 1], "num_heads": [1, 2], "masked_unit_size": [4, 4],
              "query_stride": [2, 2], "num_query_pool": 1},
    "glpn": {**FOUR_HEADS, "decoder_hidden_size": 16},
    "levit": {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8], "image_size": 64, "patch_size": 16},
    "mobilenet_v1": {"depth_multiplier": 0.25}, "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 40], "patch_size": 2,
                  "image_size": 64},
    "mobilevitv2": {"patch_size": 2, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "image_size": 64},
    "pixtral": {"patch_size": 8},
    "poolformer": FOUR_STAGES,
    "pvt": {**FOUR_HEADS, "patch_sizes": [4, 2, 2, 2], "image_size": 64},
    "pvt_v2": {**FOUR_HEADS, "image_size": 64},
    "regnet": {"hidden_sizes": [16, 24], "depths": [1, 1], "groups_width": 8},
    "resnet": {"hidden_sizes": [16, 24], "depths": [1, 1], "layer_type": "basic"},
    "segformer": {**FOUR_HEADS, "decoder_hidden_size": 16},
    "swiftformer": {"embed_dims": [16, 24, 32, 40], "depths": [1, 1, 1, 1]},
    "videomae": {"num_frames": 4}, "vivit": {"num_frames": 4},
    "textnet": {"stem_out_channels": 16, "hidden_sizes": [16, 16, 24, 32, 40]},
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 4},
    "data2vec-audio": {"conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2},
    **dict.fromkeys(("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm"), LAYER_NORM),
    "sew": {"squeeze_factor": 2, "feat_extract_norm": "layer"},
    "sew-d": {"squeeze_factor": 2, "feat_extract_norm": "layer", "position_buckets": 8},
    "wav2vec2-conformer": {**LAYER_NORM, "conv_depthwise_kernel_size": 5},
    "wav2vec2-bert": {"feature_projection_input_dim": 32, "conv_depthwise_kernel_size": 5,
                      "left_max_position_embeddings": 8, "right_max_position_embeddings": 4},
    "whisper": {"max_source_positions": 50, "max_target_positions": 16, "num_mel_bins": 80, "pad_token_id": 0,
                "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2},
    "audio-spectrogram-transformer": {"max_length": 98, "num_mel_bins": 32, "patch_size": 16},
}  # fmt: skip
# Modality -> families that are tried, and variants of them: name -> (family, fields).
FAMILIES = {
    "text": (
        "albert", "bert", "big_bird", "camembert", "clip_text_model", "convbert", "data2vec-text", "deberta",
        "deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "gpt2",
        "ibert", "llama", "longformer", "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra",
        "nystromformer", "qwen2", "rembert", "roberta", "roberta-prelayernorm", "roformer", "squeezebert", "t5", "xlm",
        "xlm-roberta", "xlnet", "xmod", "yoso",
    ),
    "image": (
        "beit", "bit", "clip_vision_model", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2",
        "dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "donut-swin", "efficientnet", "focalnet", "glpn",
        "hgnet_v2", "hiera", "ijepa", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "pixtral",
        "poolformer", "pvt", "pvt_v2", "regnet", "resnet", "segformer", "siglip2_vision_model", "siglip_vision_model",
        "swiftformer", "swin", "swinv2", "textnet", "timm_wrapper", "videomae", "vit", "vit_mae", "vit_msn", "vivit",
        "yolos",
    ),
    "audio": (
        "audio-spectrogram-transformer", "data2vec-audio", "encodec", "hubert", "moonshine", "parakeet_encoder", "sew",
        "sew-d", "speech_to_text", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer",
        "wavlm", "whisper",
    ),
}  # fmt: skip
ADAPTER = {"add_adapter": True, "output_hidden_size": 40, "num_adapter_layers": 1}
VARIANTS = {
    "hubert (group norm)": ("hubert", {"feat_extract_norm": "group", "do_stable_layer_norm": False}),
    "wav2vec2 (group norm)": ("wav2vec2", {"feat_extract_norm": "group", "do_stable_layer_norm": False}),
    "wav2vec2 (adapter)": ("wav2vec2", ADAPTER),
    "wav2vec2-bert (adapter)": ("wav2vec2-bert", ADAPTER),
}


def tiny_config(model_type: str, **fields):
    """Return a small configuration of a family."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(config_class)}
    mapped = getattr(config_class, "attribute_map", {})
    shrunk = {mapped.get(name, name): value for name, value in SHRUNK.items() if mapped.get(name, name) in known}
    chosen = {**FIELDS.get(model_type, {}), **fields}
    chosen = {mapped.get(name, name): value for name, value in chosen.items() if mapped.get(name, name) in known}
    return config_class(**{**shrunk, **chosen})


def save_stand_in(folder: Path, modality: str, model_type: str, **fields) -> None:
    """Write configuration, weights and preprocessor of a family, as a published checkpoint has them.

    Raises:
        ImportError: The family needs a library that is not installed.
    """
    import torch
    from transformers import AutoModel, set_seed

    set_seed(0)
    config = tiny_config(model_type, **fields)
    config.architectures = config.architectures or []
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    preprocessor(modality, config).save_pretrained(folder)


def preprocessor(modality: str, config):
    """Return what prepares the inputs of a stand-in."""
    from transformers import (
        ASTFeatureExtractor,
        BertTokenizer,
        SeamlessM4TFeatureExtractor,
        ViTImageProcessor,
        Wav2Vec2FeatureExtractor,
        WhisperFeatureExtractor,
    )

    if modality == "text":
        return BertTokenizer(vocab={word: number for number, word in enumerate((*SPECIAL_TOKENS, *WORDS))})
    if modality == "image":
        size = getattr(config, "image_size", IMAGE_SIZE)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return ViTImageProcessor(size={"height": height, "width": width})
    if config.model_type == "whisper":
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=int(MAX_AUDIO_SECONDS))
    if config.model_type == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    if config.model_type == "wav2vec2-bert":
        num_mel_bins = config.feature_projection_input_dim // 2
        return SeamlessM4TFeatureExtractor(feature_size=num_mel_bins, num_mel_bins=num_mel_bins)
    return Wav2Vec2FeatureExtractor(return_attention_mask=getattr(config, "feat_extract_norm", "layer") != "group")
