"""MMFusion: one model that reads text, picture and sound together, any of them missing.

Three optional towers of `transformers` turn each modality into tokens; the fusion (`fusion_mmfusion`) reads the tokens
of whatever is present. Presence is a matter of the row, not of the batch: a tower does no work for rows that lack its
modality, a learned *absent* embedding stands in, and whatever lies under a 0 in a mask cannot change the output.

Shape legend: B batch rows, P rows in which a modality is present, T tokens, D fusion width, M = 3 modalities,
Q queries, H heads, L labels.
"""

import copy
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

try:
    from .checks_mmfusion import (
        MAIN_INPUTS,
        check_inputs,
        check_tower_outputs,
        refuse_beside_encoder_outputs,
        refuse_unknown,
    )
    from .compat_mmfusion import init
    from .configuration_mmfusion import TOWER_CONFIGS, MMFusionConfig
    from .fusion_mmfusion import FUSIONS
    from .loading_mmfusion import load_tower
    from .objectives_mmfusion import (
        GradientSurgery,
        ScaledGradient,
        UnimodalHeads,
        calibrated,
        contrastive_loss,
        mean_of,
        modality_means,
        narrowed,
        ogm_coefficients,
        ranking_losses,
        row_losses,
        sample_subsets,
    )
    from .saving_mmfusion import register_code
    from .towers_mmfusion import (
        build_tower,
        frame_axis,
        grid_positions,
        max_text_tokens,
        run_audio_tower,
        run_image_tower,
        run_text_tower,
        sound_shape,
        takes_batch_statistics,
        tower_tokens,
        tower_width,
        without_pooler,
    )
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from checks_mmfusion import (
        MAIN_INPUTS,
        check_inputs,
        check_tower_outputs,
        refuse_beside_encoder_outputs,
        refuse_unknown,
    )
    from compat_mmfusion import init
    from configuration_mmfusion import TOWER_CONFIGS, MMFusionConfig  # flat checkout: train.py, tests
    from fusion_mmfusion import FUSIONS
    from loading_mmfusion import load_tower
    from objectives_mmfusion import (
        GradientSurgery,
        ScaledGradient,
        UnimodalHeads,
        calibrated,
        contrastive_loss,
        mean_of,
        modality_means,
        narrowed,
        ogm_coefficients,
        ranking_losses,
        row_losses,
        sample_subsets,
    )
    from saving_mmfusion import register_code
    from towers_mmfusion import (
        build_tower,
        frame_axis,
        grid_positions,
        max_text_tokens,
        run_audio_tower,
        run_image_tower,
        run_text_tower,
        sound_shape,
        takes_batch_statistics,
        tower_tokens,
        tower_width,
        without_pooler,
    )

MODALITIES = tuple(TOWER_CONFIGS)  # text, image, audio: the columns of `modality_mask`
TOWERS = {"text": "text_encoder", "image": "vision_encoder", "audio": "audio_encoder"}
RUN = {"text": run_text_tower, "image": run_image_tower, "audio": run_audio_tower}
# Modality -> (last hidden state of its tower for the rows that have it, mask of its tokens).
TowerOutputs = dict[str, tuple[torch.Tensor, torch.Tensor]]


# == Outputs ==========================================================================================================


@dataclass
class MMFusionEncoderOutput(ModelOutput):
    """What the towers saw: all that the fusion needs, for any subset of the modalities.

    Args:
        tokens (`torch.FloatTensor` of shape `(B, T, D)`):
            Tokens of all modalities, projected to the fusion's width; zero where a row has none.
        token_mask (`torch.BoolTensor` of shape `(B, T)`):
            True where `tokens` holds a real token (no padding, no absent modality).
        token_modality (`torch.LongTensor` of shape `(T,)`):
            Column of `modality_mask` that each token belongs to.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`):
            True where the row has the modality.
    """

    tokens: torch.FloatTensor | None = None
    token_mask: torch.BoolTensor | None = None
    token_modality: torch.LongTensor | None = None
    modality_mask: torch.BoolTensor | None = None


@dataclass
class MMFusionClassifierOutput(SequenceClassifierOutput):
    """What a classifier says.

    Args:
        unimodal_logits (`torch.FloatTensor` of shape `(B, M, L)`, *optional*):
            What each modality by itself says, where the model has such heads; 0 where a row has it not.
    """

    unimodal_logits: torch.FloatTensor | None = None


# == Projection ======================================================================================================


class MMFusionProjector(nn.Module):
    """Brings the tokens of one tower to the fusion's width and marks them with their modality."""

    def __init__(self, config: MMFusionConfig, in_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.modality_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.absent_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Tokens (P, T, D) of a tower's last hidden state, be it (P, T, C) or a feature map (P, C, H, W).

        The tokens of a feature map, unlike all others, do not know where they come from: they are told.
        """
        tokens = self.layernorm(self.linear(tower_tokens(hidden)))
        if hidden.ndim == 4:
            tokens = tokens + grid_positions(*hidden.shape[2:], tokens.shape[-1]).to(tokens)
        return self.dropout(tokens) + self.modality_embedding.to(tokens.device)


# == What all models share ============================================================================================


class MMFusionPreTrainedModel(PreTrainedModel):
    """What all MMFusion models share: configuration, weight initialisation, and building from pretrained towers."""

    config: MMFusionConfig
    config_class = MMFusionConfig
    base_model_prefix = "mmfusion"
    main_input_name = "input_ids"
    input_modalities = ("text", "image", "audio")
    supports_gradient_checkpointing = True
    _no_split_modules = []  # the fusion and the towers name their own
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MMFusionProjector):
            init.normal_(module.modality_embedding, mean=0.0, std=std)
            init.normal_(module.absent_embedding, mean=0.0, std=std)

    def enable_input_require_grads(self):
        """Let what embeds the inputs of each tower ask for gradients, as reentrant checkpointing needs it.

        As in the library, but for layers that return several tensors, as those of Swin do.
        """
        self._require_grads_hooks = [
            layer.register_forward_hook(_require_gradient) for layer in {*_input_embeddings(self)}
        ]

    def initialize_weights(self):
        """Initialise what is fresh, towers first and each by itself.

        From custom code the library passes over modules that hold no parameters of their own, also those inside a
        tower, and Wav2Vec2 initialises its projection from such a module. Called on the tower, it does not.
        """
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and not isinstance(module, MMFusionPreTrainedModel):
                module.initialize_weights()
        super().initialize_weights()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save weights and configuration with the code of the model; see `PreTrainedModel.save_pretrained`."""
        register_code(self)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_encoders(
        cls,
        text: str | PreTrainedModel | None = None,
        image: str | PreTrainedModel | None = None,
        audio: str | PreTrainedModel | None = None,
        encoder_kwargs: dict | None = None,
        **config_kwargs,
    ) -> "MMFusionPreTrainedModel":
        """Build a model around encoders; the fusion and the head start fresh.

        The only place that loads pretrained towers.

        Args:
            text: Hub id, folder or model of a BERT-like encoder; None: the model reads no text.
            image: The same for a ViT-like or ResNet-like encoder.
            audio: The same for an encoder of waveforms (Wav2Vec2-like) or of spectrograms (Whisper's, AST …).
            encoder_kwargs: Passed to `load_tower` for every tower that is loaded (`token`, `revision`, `cache_dir`,
                `allow_missing_weights` …).
            **config_kwargs: Fields of `MMFusionConfig`.

        Returns:
            A model in training mode, its towers holding the weights they came with.

        Raises:
            ValueError: When no encoder is given, or weights of one are missing or of another size.
        """
        sources = {"text": text, "image": image, "audio": audio}
        if all(source is None for source in sources.values()):
            raise ValueError("`from_encoders` needs at least one of `text`, `image`, `audio`, got none of them")
        options = encoder_kwargs or {}
        towers = {
            modality: source if isinstance(source, nn.Module) else load_tower(source, modality, **options)
            for modality, source in sources.items()
            if source is not None
        }
        for tower in towers.values():
            if without_pooler(type(tower)):
                tower.pooler = None  # as in `build_tower`, so that a saved model has the keys that loading expects
        configs = {
            field: towers[modality].config if modality in towers else None for modality, field in TOWER_CONFIGS.items()
        }
        attention = {TOWER_CONFIGS[modality]: tower.config._attn_implementation for modality, tower in towers.items()}
        config_kwargs = {"attn_implementation": attention, **config_kwargs}
        return cls(MMFusionConfig(**configs, **config_kwargs), towers=towers).train()


# == Model ============================================================================================================


class MMFusionModel(MMFusionPreTrainedModel):
    """Towers and fusion: any subset of text, picture and sound -> one vector a row.

    Args:
        config: The architecture.
        towers: Ready towers by modality, which `from_encoders` brings; those that are missing start fresh.
    """

    def __init__(self, config: MMFusionConfig, towers: dict[str, PreTrainedModel] | None = None):
        super().__init__(config)
        towers = towers or {}
        self.projectors = nn.ModuleDict()
        for modality in config.modalities:
            tower_config = getattr(config, TOWER_CONFIGS[modality])
            tower = towers[modality] if modality in towers else build_tower(tower_config)
            if tower_config._attn_implementation is None:
                # Composing the configuration unset the attention of a ready tower, which would then read no mask.
                tower_config._attn_implementation = tower.get_correct_attn_implementation(None, is_init_check=True)
            if hasattr(tower_config, "mask_ratio"):
                tower_config.mask_ratio = 0.0  # a masked autoencoder hides patches from itself, in use too
            setattr(self, TOWERS[modality], tower)
            self.projectors[modality] = MMFusionProjector(config, tower_width(tower_config))
        self.fusion = FUSIONS[config.fusion_type](config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self._text_tower().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self._text_tower().set_input_embeddings(value)

    def _text_tower(self) -> PreTrainedModel:
        if "text" not in self.config.modalities:
            raise NotImplementedError("this model has no `text_encoder`, hence no token embeddings")
        return self.text_encoder

    # -- towers ------------------------------------------------------------------------------------------------------

    def encode(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        tower_outputs: TowerOutputs | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
    ) -> MMFusionEncoderOutput:
        """Run the towers, each on the rows that have its modality, and nothing else.

        Inputs:
            As for `forward`.

        Returns:
            What `forward(encoder_outputs=…)` fuses, for any subset of the modalities.

        Raises:
            ValueError: When nothing is given, or shapes do not fit each other or the model.
        """
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values,
            "input_values": input_values, "audio_attention_mask": audio_attention_mask, "modality_mask": modality_mask,
            "inputs_embeds": inputs_embeds, "input_features": input_features,
        }  # fmt: skip
        if not tower_outputs:
            return self._project(*self.run_towers(**inputs))
        check_tower_outputs(self.config, tower_outputs, inputs, self.training)
        others, presence = {}, torch.zeros_like(modality_mask, dtype=torch.bool)  # (B, M)
        if any(inputs[name] is not None for name in (*MAIN_INPUTS.values(), "inputs_embeds", "input_features")):
            others, presence = self.run_towers(**inputs)
        for modality in tower_outputs:
            column = MODALITIES.index(modality)
            presence[:, column] = modality_mask[:, column].bool()
        return self._project({**others, **tower_outputs}, presence)

    def run_towers(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
    ) -> tuple[TowerOutputs, torch.BoolTensor]:
        """What the towers say, before anything of the fusion: fit to be kept where the towers are frozen.

        Inputs:
            As for `forward`.

        Returns:
            (For each modality that a row has: last hidden state of the P rows that have it, (P, T, C) or a feature map
            (P, C, H, W), and its mask (P, T), True = a token; presence (B, M)). While a graph is traced P is B.

        Raises:
            ValueError: As `encode`.
        """
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("`input_ids` and `inputs_embeds` were both given, and both are the text: leave one out")
        text = input_ids if inputs_embeds is None else inputs_embeds
        sound = self._sound(input_values, input_features)
        given = {"text": text, "image": pixel_values, "audio": sound}
        given = {modality: tensor for modality, tensor in given.items() if tensor is not None}
        masks = {"text": attention_mask, "audio": audio_attention_mask}
        limit = max_text_tokens(self.text_encoder) if "text" in self.config.modalities else None
        audio = self.config.audio_config
        sizes = () if audio is None else (sound_shape(audio), frame_axis(audio))
        check_inputs(self.config, given, masks, modality_mask, limit, *sizes)
        presence = self._presence(given, masks, modality_mask)  # (B, M)
        inputs = {
            "text": (text, attention_mask), "image": (pixel_values,),
            "audio": (sound, audio_attention_mask),
        }  # fmt: skip
        outputs = {}
        for modality in given:
            present = presence[:, MODALITIES.index(modality)]
            output = self._run_tower(modality, present, *inputs[modality])
            if output is not None:
                outputs[modality] = output
        return outputs, presence

    def _run_tower(
        self, modality: str, present: torch.Tensor, *inputs: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Last hidden state and mask of one tower, which sees only the P rows where its modality is present.

        While a graph is traced (`torch.compile`, `torch.export`), shapes may not depend on data: the tower then sees
        all rows, and those that lack the modality are zeroed before and after it. A tower that takes statistics of
        the batch must not see them; `torch.compile` breaks the graph there.
        """
        tower = getattr(self, TOWERS[modality])
        run = functools.partial(RUN[modality], tower)
        if torch.compiler.is_compiling() and not takes_batch_statistics(tower):
            return run(*_without_absent_rows(present, *inputs))
        rows = present.nonzero().squeeze(1)  # (P,)
        if rows.numel() == 0:
            return None
        if rows.numel() == present.shape[0]:
            return run(*inputs)
        return run(*(None if x is None else x[rows] for x in inputs))

    def _project(self, tower_outputs: TowerOutputs, presence: torch.BoolTensor) -> MMFusionEncoderOutput:
        """Bring all tokens to the fusion's width, and those of the P rows to their places among the B rows."""
        tokens, token_masks, columns = [], [], []
        for column, modality in enumerate(MODALITIES):
            if modality in tower_outputs:
                hidden, mask = tower_outputs[modality]
                # With a `device_map` over several devices, towers and fusion meet where the inputs are.
                projected = self.projectors[modality](hidden).to(presence.device)
                projected, mask = _placed(projected, mask, presence[:, column])
                tokens.append(projected)
                token_masks.append(mask)
                columns.append(torch.full((projected.shape[1],), column, device=presence.device))
        if not tokens:  # rows with nothing at all
            tokens = [torch.zeros(len(presence), 0, self.config.hidden_size, dtype=self.dtype, device=presence.device)]
            token_masks, columns = [tokens[0][..., 0].bool()], [presence.new_zeros(0, dtype=torch.long)]
        return MMFusionEncoderOutput(
            tokens=torch.cat(tokens, dim=1),
            token_mask=torch.cat(token_masks, dim=1),
            token_modality=torch.cat(columns),  # by tensors: a list of so many numbers would fix a graph's lengths
            modality_mask=presence,
        )

    def _presence(self, given: dict, masks: dict, modality_mask: torch.Tensor | None) -> torch.BoolTensor:
        """(B, M), True where a row has the modality.

        That is: it was passed, `modality_mask` does not deny it, and its own mask leaves a token or a sample.
        """
        first = next(iter(given.values()))
        presence = first.new_zeros(first.shape[0], len(MODALITIES), dtype=torch.bool)
        for modality in given:
            mask = masks.get(modality)
            presence[:, MODALITIES.index(modality)] = True if mask is None else mask.bool().any(dim=1)
        return presence if modality_mask is None else presence & modality_mask.to(first.device).bool()

    def _sound(self, input_values: torch.Tensor | None, input_features: torch.Tensor | None) -> torch.Tensor | None:
        """The one of the two that the audio tower reads; the other must not be given."""
        given = {"input_values": input_values, "input_features": input_features}
        name = self.config.main_inputs["audio"]
        other = next(key for key in given if key != name)
        if given[other] is not None and "audio" in self.config.modalities:
            kind = self.config.audio_config.model_type
            raise ValueError(f"`{other}` was given, but the audio tower ({kind}) reads `{name}`: give that")
        return given[name] if given[other] is None else given[other]

    # -- fusion ------------------------------------------------------------------------------------------------------

    def fuse(
        self,
        encoder_outputs: MMFusionEncoderOutput,
        modality_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Fuse what the towers saw, without the modalities that `modality_mask` denies.

        Inputs:
            encoder_outputs: From `encode`.
            modality_mask: (B, M) or None, 1 = keep; a modality is used where the row has it and the mask keeps it.

        Returns:
            As `MMFusionFusion`.
        """
        refuse_unknown(kwargs)
        presence = _kept(encoder_outputs.modality_mask, modality_mask)
        token_mask = encoder_outputs.token_mask & presence[:, encoder_outputs.token_modality]  # (B, T)
        # Attention weighs masked tokens with 0, and 0 * NaN is NaN: they are zeroed, too.
        tokens = encoder_outputs.tokens.masked_fill(~token_mask[..., None], 0.0)
        # One slot a modality in front: the learned "absent", attended to exactly where the modality is not there.
        absent = torch.stack(
            [(p.modality_embedding + p.absent_embedding).to(tokens.device) for p in self.projectors.values()]
        )
        absent = absent.to(tokens.dtype).expand(presence.shape[0], -1, -1)
        columns = torch.tensor([MODALITIES.index(modality) for modality in self.projectors], device=presence.device)
        tokens = torch.cat([absent, tokens], dim=1)
        token_mask = torch.cat([~presence[:, columns], token_mask], dim=1)
        token_modality = torch.cat([columns, encoder_outputs.token_modality])
        fused = self.fusion(tokens, token_mask, token_modality, **{**kwargs, "return_dict": True})
        fused.pooler_output = fused.pooler_output.to(presence.device)
        return fused

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        tower_outputs: TowerOutputs | None = None,
        encoder_outputs: MMFusionEncoderOutput | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Read whatever is given and fuse it.

        Inputs:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 = token, 0 = padding.
            pixel_values: (B, C, H, W), as the image processor makes them.
            input_values: (B, samples), waveforms at the feature extractor's rate.
            audio_attention_mask: (B, samples), or of spectrograms (B, frames); 1 = sample or frame, 0 = padding.
            modality_mask: (B, 3), columns text, image, audio, 1 = present. Without it a modality that is passed is
                present in every row, and one that is not passed in none.
            tower_outputs: From `run_towers`, for some modalities or all, in place of their inputs; these towers are
                not run, and `modality_mask` must be given.
            encoder_outputs: From `encode`, in place of all inputs: the towers are not run again, and `modality_mask`
                chooses a subset.
            inputs_embeds: (B, T, C) in place of `input_ids`: what the text tower's table of embeddings gives, or
                learned prompts in front of it.
            input_features: In place of `input_values`, for a tower that reads them, spectrograms (B, frames, mel), of
                Whisper (B, mel, frames).
            **kwargs: `output_attentions`, `output_hidden_states`; `use_cache`, which has no effect.

        Returns:
            `last_hidden_state` (B, Q, D), `pooler_output` (B, D); `hidden_states` and `attentions` of the fusion when
            asked for (`attentions` with eager attention only; its first tokens are the absent slots, one a tower).

        Raises:
            ValueError: When nothing is given, or shapes do not fit each other or the model.
            TypeError: A keyword that no model here takes.
        """
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values,
            "input_values": input_values, "audio_attention_mask": audio_attention_mask,
            "tower_outputs": tower_outputs, "inputs_embeds": inputs_embeds, "input_features": input_features,
        }  # fmt: skip
        if encoder_outputs is None:
            encoder_outputs = self.encode(**inputs, modality_mask=modality_mask)
            modality_mask = None  # it is in the encoder's outputs now
        else:
            refuse_beside_encoder_outputs(inputs)
        return self.fuse(encoder_outputs, modality_mask, **kwargs)

    # -- one shared space --------------------------------------------------------------------------------------------

    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """Unit vectors (B, D) of texts alone, comparable with those of pictures, sounds and any fused subset."""
        return self._features(input_ids=input_ids, attention_mask=attention_mask)

    def get_image_features(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """Unit vectors (B, D) of pictures alone, comparable with those of texts, sounds and any fused subset."""
        return self._features(pixel_values=pixel_values)

    def get_audio_features(
        self,
        input_values: torch.FloatTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        input_features: torch.FloatTensor | None = None,
    ) -> torch.FloatTensor:
        """Unit vectors (B, D) of sounds alone, comparable with those of texts, pictures and any fused subset."""
        return self._features(
            input_values=input_values, input_features=input_features, audio_attention_mask=audio_attention_mask
        )

    def _features(self, **inputs: torch.Tensor | None) -> torch.FloatTensor:
        return F.normalize(self.fuse(self.encode(**inputs)).pooler_output, dim=-1)


# == Heads ============================================================================================================


class MMFusionForSequenceClassification(MMFusionPreTrainedModel):
    """MMFusion with a linear head: single-label or multi-label classification, or regression.

    Args:
        config: The architecture; `num_labels` and `problem_type` decide the head and the loss.
        towers: As for `MMFusionModel`.
    """

    def __init__(self, config: MMFusionConfig, towers: dict[str, PreTrainedModel] | None = None):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mmfusion = MMFusionModel(config, towers)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.unimodal = UnimodalHeads(config) if config.balance != "none" else None
        self.modality_dropout = config.modality_dropout  # a training may change it from step to step
        self.post_init()

    # -- what was fitted to the weights ------------------------------------------------------------------------------

    has_learnt = False  # whether a loss was computed in training since the model was last in use

    def __setattr__(self, name: str, value):
        old = self.__dict__.get("_modules", {}).get("classifier") if name == "classifier" else None
        super().__setattr__(name, value)
        if old is not None and _is_another_head(old, value):
            self.config.forget_fitted("`classifier` was replaced")

    def train(self, mode: bool = True) -> "MMFusionForSequenceClassification":
        """Set the mode; after a training, temperatures and thresholds that were fitted before it are forgotten."""
        if not mode:
            self._forget_if_trained()
        return super().train(mode)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save the model, without what was fitted to weights that it no longer has; see the base class."""
        self._forget_if_trained()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _forget_if_trained(self):
        if self.has_learnt:
            self.has_learnt = False
            self.config.forget_fitted("the model was trained since they were fitted")

    def encode(self, **inputs: torch.Tensor | None) -> MMFusionEncoderOutput:
        """Run the towers; see `MMFusionModel.encode`."""
        return self.mmfusion.encode(**inputs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        tower_outputs: TowerOutputs | None = None,
        encoder_outputs: MMFusionEncoderOutput | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMFusionClassifierOutput:
        """Classify whatever is given.

        Inputs:
            labels: (B,) class indices, or (B, L) floats for multi-label, or (B,) or (B, L) floats for regression; of
                several tasks their columns side by side, as floats. A row with -100 or NaN has none.
            num_items_in_batch: Labels of all batches whose gradients are added up, as `Trainer` counts them; the loss
                is then weighted so that those of the batches add up to their mean.
            All others: as for `MMFusionModel.forward`.

        Returns:
            `logits` (B, L), in use divided by the temperature of what the row has (`config.temperatures`);
            `unimodal_logits` where the model has such heads; `loss` when `labels` is given. In training the loss is
            the mean over the rows as they came and the same rows with a random subset of their modalities
            (`config.modality_dropout`), and what `config.balance` and its like add; the logits are those of the rows
            as they came.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        refuse_unknown(kwargs)
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values,
            "input_values": input_values, "audio_attention_mask": audio_attention_mask,
            "tower_outputs": tower_outputs, "inputs_embeds": inputs_embeds, "input_features": input_features,
        }  # fmt: skip
        if encoder_outputs is None:
            encoder_outputs = self.encode(**inputs, modality_mask=modality_mask)
            modality_mask = None
        else:
            refuse_beside_encoder_outputs(inputs)
        presence = _kept(encoder_outputs.modality_mask, modality_mask)
        unimodal_logits, encoder_outputs = self._balanced(encoder_outputs, presence, labels)
        fused = self.mmfusion.fuse(encoder_outputs, modality_mask, **kwargs)
        logits = self._classified(fused.pooler_output)
        if not self.training:
            logits = calibrated(logits, presence, self.config, MODALITIES)

        loss = None
        if labels is not None and not self.training:
            loss = mean_of(*row_losses(logits, labels, self.config))
        elif labels is not None:
            self.has_learnt = True
            loss = self._training_loss(logits, labels, encoder_outputs, presence)
            if unimodal_logits is not None:
                loss = loss + self._unimodal_loss(unimodal_logits, labels, presence)
        if loss is not None and num_items_in_batch is not None:
            share = labels.ne(-100).sum() / num_items_in_batch  # of this batch in a whole step
            loss = loss * share.reshape(())  # `DataParallel` gives each device a number of shape (1, 1)
        return MMFusionClassifierOutput(
            loss=loss, logits=logits, unimodal_logits=unimodal_logits,
            hidden_states=fused.hidden_states, attentions=fused.attentions,
        )  # fmt: skip

    def _classified(self, fused: torch.Tensor) -> torch.Tensor:
        """Return logits (B, L) of fused vectors (B, D), on their device."""
        return self.classifier(self.dropout(fused)).to(fused.device)

    # -- training ----------------------------------------------------------------------------------------------------

    def _training_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        encoder_outputs: MMFusionEncoderOutput,
        presence: torch.Tensor,
    ) -> torch.Tensor:
        """Of the rows as they came, of a random subset of each, and of what lies between the modalities."""
        config = self.config
        losses, has_label = row_losses(logits, labels, config)
        loss = mean_of(losses, has_label)
        if len(config.modalities) == 1:
            return loss
        if self.modality_dropout > 0:
            subset = sample_subsets(presence, self.modality_dropout)
            partial = self.mmfusion.fuse(encoder_outputs, subset).pooler_output
            fewer, _ = row_losses(self._classified(partial), labels, config)
            loss = (loss + mean_of(fewer, has_label)) / 2
            if config.subset_ranking_weight > 0:
                loss = loss + config.subset_ranking_weight * mean_of(ranking_losses(losses, fewer), has_label)
        if config.contrastive_weight > 0:
            loss = loss + config.contrastive_weight * self._contrastive_loss(labels, encoder_outputs, presence)
        return loss

    def _contrastive_loss(
        self, labels: torch.Tensor, encoder_outputs: MMFusionEncoderOutput, presence: torch.Tensor
    ) -> torch.Tensor:
        columns = {modality: MODALITIES.index(modality) for modality in self.config.modalities}
        vectors = {}
        for modality, column in columns.items():
            only = torch.arange(len(MODALITIES), device=presence.device) == column  # (M,)
            vectors[modality] = F.normalize(self.mmfusion.fuse(encoder_outputs, presence & only).pooler_output, dim=-1)
        by_class = self.config.contrastive_by_class and not labels.is_floating_point()
        return contrastive_loss(
            vectors, {name: presence[:, column] for name, column in columns.items()}, labels if by_class else None
        )

    def _balanced(
        self, encoder_outputs: MMFusionEncoderOutput, presence: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, MMFusionEncoderOutput]:
        """(What each modality by itself says (B, M, L), the tokens that the fusion reads).

        They are those of the towers; in training their gradient is changed on its way back, as `config.balance` says.
        """
        if self.unimodal is None:
            return None, encoder_outputs
        tokens, token_modality = encoder_outputs.tokens, encoder_outputs.token_modality
        token_mask = encoder_outputs.token_mask & presence[:, token_modality]
        columns = {modality: MODALITIES.index(modality) for modality in self.config.modalities}
        joint = own = tokens.masked_fill(~token_mask[..., None], 0.0)
        learns, balance = self.training and labels is not None, self.config.balance
        if learns and balance == "mmpareto":
            joint, own = GradientSurgery.apply(own, token_modality)
        elif learns and balance == "ogm_ge":
            own = own.detach()
        by_modality = self.unimodal(modality_means(own, token_mask, token_modality, columns))
        by_modality = {name: logits.to(presence.device) for name, logits in by_modality.items()}
        if learns and balance == "ogm_ge" and not labels.is_floating_point():
            known = {name: presence[:, column] for name, column in columns.items()}
            factors = ogm_coefficients(by_modality, labels, known, self.config.ogm_alpha)
            by_column = torch.ones(len(MODALITIES), device=tokens.device)
            for name, column in columns.items():
                by_column[column] = factors[name]
            joint = ScaledGradient.apply(joint, by_column[token_modality])
        logits = tokens.new_zeros(tokens.shape[0], len(MODALITIES), self.num_labels)
        for name, column in columns.items():
            logits[:, column] = torch.where(presence[:, column, None], by_modality[name].to(logits.dtype), 0.0)
        return logits, dataclasses.replace(encoder_outputs, tokens=joint)

    def _unimodal_loss(
        self, unimodal_logits: torch.Tensor, labels: torch.Tensor, presence: torch.Tensor
    ) -> torch.Tensor:
        """Mean over the modalities of the loss of each by itself, over the rows that have it."""
        losses = []
        for modality in self.config.modalities:
            column = MODALITIES.index(modality)
            each, has_label = row_losses(unimodal_logits[:, column], labels, self.config)
            losses.append(mean_of(each, has_label & presence[:, column]))
        return self.config.unimodal_loss_weight * torch.stack(losses).mean()

    # -- use ---------------------------------------------------------------------------------------------------------

    def for_task(self, name: str) -> "MMFusionForSequenceClassification":
        """The model of one of its tasks alone; towers, fusion and the weights of the head are shared."""
        task, one = self.config.task(name), copy.copy(self)
        one._modules, one.config, one.num_labels = dict(self._modules), task.config, task.config.num_labels
        one._modules["classifier"] = narrowed(self.classifier, task.outputs)  # the same head: no `__setattr__`
        one.unimodal = None if self.unimodal is None else self.unimodal.narrowed(task.outputs)
        return one


# == Small pieces =====================================================================================================


def _input_embeddings(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Yield the layers that embed the inputs of a model and of the models in it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            try:
                layer = module.get_input_embeddings()
            except NotImplementedError:
                continue
            if isinstance(layer, nn.Module):
                yield layer


def _require_gradient(module: nn.Module, inputs: tuple, output):
    first = output[0] if isinstance(output, tuple) else output
    if isinstance(first, torch.Tensor) and first.is_floating_point():
        first.requires_grad_(True)


def _is_another_head(old: nn.Module, new: nn.Module) -> bool:
    """Whether a module has other weights than the one it replaces; its quantized or wrapped form has not."""
    is_same = getattr(new, "weight", None) is old.weight
    is_quantized = type(new) is not nn.Linear and isinstance(new, nn.Linear) and new.out_features == old.out_features
    return not is_same and not is_quantized


def _kept(presence: torch.BoolTensor, modality_mask: torch.Tensor | None) -> torch.BoolTensor:
    """(B, M), True where a row has a modality and the mask keeps it."""
    if modality_mask is None:
        return presence
    if modality_mask.shape != presence.shape:
        raise ValueError(
            f"`modality_mask` must be of shape {tuple(presence.shape)}, as in `encoder_outputs`, "
            f"got {tuple(modality_mask.shape)}"
        )
    return presence & modality_mask.to(presence.device).bool()


def _placed(
    tokens: torch.Tensor, mask: torch.Tensor, present: torch.BoolTensor
) -> tuple[torch.Tensor, torch.BoolTensor]:
    """Tokens (B, T, D) and mask (B, T) of the P rows that are present, each in its place.

    Whether a tower saw P rows or all of them is read from the size: where the compiler breaks a graph inside a tower,
    this function may be traced and `_run_tower` not, or the other way round.
    """
    if tokens.shape[0] == present.shape[0]:
        return _where_rows(present, tokens), mask & present[:, None]
    rows = (~present).byte().argsort(stable=True)[: len(tokens)]  # unlike `nonzero`, it does not wait for the device
    shape = (present.shape[0], *tokens.shape[1:])
    return tokens.new_zeros(shape).index_copy(0, rows, tokens), mask.new_zeros(shape[:2]).index_copy(0, rows, mask)


def _without_absent_rows(
    present: torch.BoolTensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Inputs of a tower, zero in rows that are not present, and unmasked: attention to no token at all is NaN."""
    values = _where_rows(present, values)
    return (values,) if mask is None else (values, torch.where(present[:, None], mask, torch.ones_like(mask)))


def _where_rows(present: torch.BoolTensor, x: torch.Tensor) -> torch.Tensor:
    """x with the rows that are not present set to zero (B, ...)."""
    return torch.where(present.view(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x))


def _other_files():
    """Name the other travelling files; never called, but read by `transformers`: see `saving_mmfusion`."""
    from .cells_mmfusion import sample_of_row  # noqa: F401
    from .collating_mmfusion import refuse_unknown_keywords  # noqa: F401
    from .containers_mmfusion import Part  # noqa: F401
    from .decoding_mmfusion import decode_image  # noqa: F401
    from .explanation_mmfusion import explain_rows  # noqa: F401
    from .pipeline_mmfusion import MMFusionPipeline  # noqa: F401
    from .processing_mmfusion import MMFusionProcessor  # noqa: F401


__all__ = ["MMFusionForSequenceClassification", "MMFusionModel", "MMFusionPreTrainedModel"]
