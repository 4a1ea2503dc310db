"""Tiny random backbones of other families, with tokenizers like their own, saved as a hub folder would be."""

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CamembertConfig,
    CamembertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from data.lab import Lab, LabSettings

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
FAMILIES = {
    "bert": (BertForMaskedLM, lambda n: BertConfig(vocab_size=n, max_position_embeddings=256, **SHAPE)),
    "electra": (
        ElectraForMaskedLM,
        lambda n: ElectraConfig(vocab_size=n, max_position_embeddings=256, embedding_size=16, **SHAPE),
    ),
    "distilbert": (
        DistilBertForMaskedLM,
        lambda n: DistilBertConfig(vocab_size=n, max_position_embeddings=256, **DISTIL),
    ),
    "modernbert": (
        ModernBertForMaskedLM,
        lambda n: ModernBertConfig(
            vocab_size=n,
            max_position_embeddings=256,
            local_attention=16,
            global_attn_every_n_layers=2,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            **SHAPE,
        ),
    ),
    "deberta-v2": (
        DebertaV2ForMaskedLM,
        lambda n: DebertaV2Config(vocab_size=n, max_position_embeddings=256, **RELATIVE, **SHAPE),
    ),
    "roberta": (RobertaForMaskedLM, lambda n: RobertaConfig(vocab_size=n, max_position_embeddings=258, **SHAPE)),
    "xlm-roberta": (
        XLMRobertaForMaskedLM,
        lambda n: XLMRobertaConfig(vocab_size=n, max_position_embeddings=258, **SHAPE),
    ),
    "camembert": (CamembertForMaskedLM, lambda n: CamembertConfig(vocab_size=n, max_position_embeddings=258, **SHAPE)),
    "gpt2": (
        GPT2LMHeadModel,
        lambda n: GPT2Config(
            vocab_size=n, n_positions=256, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=2
        ),
    ),
}


def save_backbone(family: str, folder: str) -> str:
    """A random model of `family` with 256 positions for tokens; returns `folder`."""
    texts = [m.content for row in Lab(LabSettings(num_rows=100)).rows() for m in row.messages]
    like_roberta = family in ("roberta", "xlm-roberta", "camembert", "gpt2")
    tokenizer = _byte_level(texts) if like_roberta else _wordpiece(texts)
    model_class, config = FAMILIES[family]
    model = model_class(config(len(tokenizer)))
    draw_weights(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw_weights(model: torch.nn.Module) -> None:
    """The same weights at every call, so large that a wrong position or a wrong neighbor shows in the scores."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)


def _wordpiece(texts: list[str]) -> PreTrainedTokenizerFast:
    """Lower-cases and drops white space, as BERT's does."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """Puts <s>, which is both its beginning of text and its [CLS], first: as RoBERTa's does."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
