"""Text encoder: a Sentence-Transformers model, loaded or built here, and its scaled vectors.

Presets: `scratch` (a small transformer and a tokenizer made from the data set's own texts), a folder,
or a hub name. embedding/text/fine_tuning.py trains it on text pairs by MultipleNegativesRankingLoss
(Henderson et al. 2017). The result is a standard Sentence-Transformers folder.
Shapes: N texts, B texts of a batch, D width.
"""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import embedding.text.libraries  # noqa: F401  isort: skip (before the libraries)
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from embedding.starting_weights import weights_path
from embedding.text.vocabulary import word_pieces
from recsys.array_headers import one_header_at_a_time
from recsys.errors import UserError
from recsys.files import EMBED_AGAIN, reading
from recsys.listing import write_listing


def load_text_encoder(path: str, max_tokens: int, device: torch.device) -> SentenceTransformer:
    """Load a folder, a folder within an installed package, or a hub name.

    Raises:
        UserError: neither a folder nor a hub name that can be reached.
    """
    folder = weights_path(path, "encoder.text.path")
    try:
        is_there = folder is not None and folder.is_dir()
        model = SentenceTransformer(str(folder) if is_there else path, device=str(device))
    except Exception as error:  # the hub client raises many kinds; all mean: not there
        raise UserError(
            f"encoder.text.path={path!r}: no Sentence-Transformers folder and no hub name that can be "
            f"loaded ({type(error).__name__}: {str(error)[:200].partition(chr(10))[0]})"
        ) from error
    known = model.max_seq_length
    model.max_seq_length = min(max_tokens, known) if known else max_tokens
    return model


def set_prompts(model: SentenceTransformer, prompt: str | None, query_prompt: str | None) -> None:
    """Store the prompts of items and of queries in the model, whose folder keeps them.

    The library's names are `document` and `query`; items have the model's default prompt.

    Args:
        prompt: text, name of a prompt that the model has, or None: the model's default prompt.
        query_prompt: the same for queries; None: as `prompt`.

    Raises:
        UserError: a bare word that is no prompt of the model: a name misspelt.
    """
    if prompt is None and query_prompt is None:
        return
    known = dict(model.prompts)
    for key, given in (("prompt", prompt), ("query_prompt", query_prompt)):
        if given and given not in known and given.isidentifier():
            raise UserError(
                f"encoder.text.{key}={given}: expected a prompt of the model "
                f"({', '.join(known)}), or text with its punctuation, such as 'query: '"
            )
    of_items = prompts_of(model)[0] if prompt is None else known.get(prompt, prompt)
    of_queries = of_items if query_prompt is None else known.get(query_prompt, query_prompt)
    model.prompts |= {"document": of_items, "query": of_queries}
    model.default_prompt_name = "document"


def prompts_of(model: SentenceTransformer) -> tuple[str, str]:
    """Return the texts before an item's text and before a query; empty: none.

    They differ only where the default is `document`, as `set_prompts` makes it: another model's prompt
    for queries is used when it is asked for.
    """
    of_items = model.prompts.get(model.default_prompt_name or "") or ""
    has_both = model.default_prompt_name == "document"
    return of_items, (model.prompts.get("query") or "") if has_both else of_items


def build_scratch_encoder(
    texts: Sequence[str],
    folder: Path,
    *,
    vocabulary_size: int,
    hidden_dim: int,
    num_layers: int,
    max_tokens: int,
    seed: int,
    device: torch.device,
) -> SentenceTransformer:
    """Train a WordPiece tokenizer on `texts` and return an untrained small BERT with mean pooling.

    Chinese characters are tokens of their own, so that one tokenizer serves all languages.
    """
    tokenizer = word_pieces(texts, vocabulary_size)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_tokens,
    )
    torch.manual_seed(seed)
    bert = BertModel(
        BertConfig(
            vocab_size=len(fast),
            hidden_size=hidden_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden_dim,
            max_position_embeddings=max_tokens,
        ),
        add_pooling_layer=False,
    )
    base = folder / "untrained"
    bert.save_pretrained(base)
    fast.save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=max_tokens)
    shutil.rmtree(base)
    pooling = Pooling(hidden_dim, pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling], device=str(device))


def has_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether training computes in bfloat16.

    Args:
        precision: `auto`, `float32` or `bfloat16`.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class TextEncoder:
    """Model and the scaling fitted on a sample of the data's texts."""

    def __init__(self, model: SentenceTransformer, batch_size: int):
        """Keep the model; `fit_scaling` comes before `encode`."""
        self.model = model.eval()
        self.batch_size = batch_size
        # Its own, because a tokenizer carries its padding with it and `tokens` runs in another thread.
        self._counter: Any = copy.deepcopy(model.tokenizer)
        self.mean: np.ndarray | None = None
        self.deviation: np.ndarray | None = None

    def batches(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return int [B] positions in `texts`: batches of similar length in tokens, the longest first."""
        if callable(self._counter):
            counted = self._counter(
                list(texts),
                truncation=True,
                max_length=self.model.max_seq_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
        else:
            counted = list(texts)  # static word vectors: no padding, so characters will do
        order = np.argsort([-len(tokens) for tokens in counted], kind="stable")
        return np.split(order, range(self.batch_size, len(order), self.batch_size))

    def tokens(self, texts: Sequence[str], *, are_queries: bool = False) -> dict[str, Any]:
        """Return the network's input for one batch, padded to its longest text; one thread at a time.

        Args:
            are_queries: words that people search with, not texts of items.
        """
        prompt = prompts_of(self.model)[are_queries] or None
        return self.model.preprocess(list(texts), prompt=prompt)

    @torch.inference_mode()
    def vectors(self, tokens: dict[str, Any]) -> np.ndarray:
        """Return unit-length sentence vectors of one batch of tokens, float32 [B, D]."""
        device = self.model.device
        inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in tokens.items()}
        vectors_BD = self.model(inputs)["sentence_embedding"].float()
        return torch.nn.functional.normalize(vectors_BD, dim=1).cpu().numpy()

    def raw(self, texts: Sequence[str], *, are_queries: bool = False) -> np.ndarray:
        """Return unit-length sentence vectors, float32 [N, D], N > 0; batched by length."""
        parts = [
            (at, self.vectors(self.tokens([texts[i] for i in at], are_queries=are_queries)))
            for at in self.batches(texts)
        ]
        out = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
        for at, vectors in parts:
            out[at] = vectors
        return out

    def fit_scaling(self, texts: Sequence[str]) -> None:
        """Fit mean and deviation per dimension on a sample of texts.

        Raises:
            UserError: no text in the sample.
        """
        if not texts:
            raise UserError("no text to fit the text encoder's scaling on; check items.text")
        vectors = self.raw(texts)
        self.mean = vectors.mean(axis=0)
        # One factor for all dimensions keeps the angles between centred vectors.
        self.deviation = np.full_like(self.mean, max(vectors.std(axis=0).mean(), 1e-6))

    def encode(self, texts: Sequence[str], *, are_queries: bool = False) -> np.ndarray:
        """Return scaled vectors, float32 [N, D]; N > 0.

        Args:
            are_queries: words that people search with, not texts of items.
        """
        return self.scaled(self.raw(texts, are_queries=are_queries))

    def scaled(self, raw: np.ndarray) -> np.ndarray:
        """Return unit-length vectors [N, D] scaled as fitted."""
        assert self.mean is not None and self.deviation is not None, "fit_scaling comes first"
        return (raw - self.mean) / self.deviation

    def save(self, folder: Path) -> None:
        """Write the Sentence-Transformers folder, scaling.npz beside it, and files.json of both."""
        # Without the library's model card, whose text differs from run to run.
        self.model.save(str(folder / "model"), create_model_card=False)
        assert self.mean is not None and self.deviation is not None, "fit_scaling comes first"
        np.savez(folder / "scaling.npz", mean=self.mean, deviation=self.deviation)
        # Sentence-Transformers loads a folder that lacks some of its files, and encodes differently.
        write_listing(folder)

    def load_scaling(self, folder: Path) -> None:
        """Load what `save` wrote."""
        file = folder / "scaling.npz"
        with reading(file, f"delete {folder} and {EMBED_AGAIN}"), one_header_at_a_time():
            stored: Any = np.load(file, allow_pickle=False)
            self.mean, self.deviation = stored["mean"], stored["deviation"]
