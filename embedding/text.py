"""The text encoder: a Sentence-Transformers model, loaded or trained here on text pairs.

Presets: `scratch` (a small transformer and its tokenizer trained on the data set's own texts and
pairs), a folder, or a hub name, with or without fine-tuning by MultipleNegativesRankingLoss
(Henderson et al. 2017). What leaves is a standard Sentence-Transformers folder.
"""

import copy
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Progress bars and advice of the libraries; errors still come through.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import embedding.torchvision_ops  # noqa: E402, F401  isort: skip (before transformers)
import transformers  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import (  # noqa: E402
    Pooling,
    Transformer,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast  # noqa: E402

transformers.logging.disable_progress_bar()
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text encoder; presets in configs/encoder/text/."""

    path: str = "scratch"
    """`scratch`, a Sentence-Transformers folder, or a hub name."""
    max_tokens: int = 128
    """Longer texts are cut."""
    batch_size: int = 64
    """Texts a forward pass."""
    epochs: int = 0
    """Passes over the pairs (fine-tuning); 0: as loaded. `scratch` needs at least 1."""
    learning_rate: float = 5e-5
    """Peak step size; 10 % of the steps warm up."""
    pair_batch_size: int = 80
    """Pairs a step; the other pairs of the batch are the negatives."""
    max_pairs: int = 200_000
    """Most pairs a pass takes, sampled anew for each."""
    vocabulary_size: int = 8000
    """Tokens of the scratch tokenizer."""
    hidden_dim: int = 128
    """Width of the scratch transformer."""
    num_layers: int = 2
    """Layers of the scratch transformer."""


def load_text_encoder(path: str, max_tokens: int, device: torch.device) -> SentenceTransformer:
    """Load a folder or hub name.

    Raises:
        ValueError: neither a folder nor a hub name that can be reached.
    """
    try:
        model = SentenceTransformer(str(Path(path).expanduser()), device=str(device))
    except Exception as error:  # the hub client raises many kinds; all mean: not there
        raise ValueError(
            f"encoder.text.path={path!r}: no Sentence-Transformers folder and no hub name that can be "
            f"loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        ) from error
    known = model.max_seq_length
    model.max_seq_length = min(max_tokens, known) if known else max_tokens
    return model


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
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocabulary_size, special_tokens=special, show_progress=False
        ),
    )
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


def fine_tune(
    model: SentenceTransformer,
    pairs: Sequence[tuple[str, str]],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    max_pairs: int,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Train in place on (anchor, positive) pairs; the batch's other positives are the negatives.

    No text stands twice in a batch, as it would be its own negative.
    """
    loss_of = MultipleNegativesRankingLoss(model)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    count = min(len(pairs), max_pairs)
    steps = epochs * max(1, count // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, max(0.02, (steps - step) / max(1, steps - warm_up))),
    )
    model.train()
    bar = tqdm(total=steps, desc="text pairs", unit="step", disable=None)
    for epoch in range(epochs):
        losses = []
        chosen = rng.permutation(len(pairs))[:count]
        for batch in distinct_batches([pairs[i] for i in chosen], batch_size):
            features = [_tokens(model, side) for side in zip(*batch, strict=True)]
            loss = loss_of(features, torch.zeros(len(batch)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.update(1)
        if epoch + 1 == epochs or (epoch + 1) % 5 == 0:
            say(f"text pairs epoch {epoch + 1}: loss {np.mean(losses):.4f}")
    bar.close()
    model.eval()


def _tokens(model: SentenceTransformer, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    tokens = model.preprocess(list(texts))
    return {k: v.to(model.device) for k, v in tokens.items() if torch.is_tensor(v)}


def distinct_batches(
    pairs: Sequence[tuple[str, str]], batch_size: int
) -> list[list[tuple[str, str]]]:
    """Cut pairs into batches in which no text occurs twice; the rest is left for the next pass."""
    batches: list[list[tuple[str, str]]] = []
    waiting = list(pairs)
    while len(waiting) >= min(batch_size, len(pairs)) and waiting:
        batch: list[tuple[str, str]] = []
        seen: set[str] = set()
        later = []
        for index, (anchor, positive) in enumerate(waiting):
            if len(batch) == batch_size:
                later += waiting[index:]
                break
            if anchor in seen or positive in seen:
                later.append((anchor, positive))
                continue
            seen.update((anchor, positive))
            batch.append((anchor, positive))
        if len(batch) < min(batch_size, len(pairs)) // 2 or len(batch) < 2:
            break
        batches.append(batch)
        waiting = later
    return batches


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
        """Return positions in `texts`, in batches of like length in tokens, the longest first."""
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

    def tokens(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the network's input for one batch, padded to its longest text; one thread at a time."""
        prompt = self.model.prompts.get(self.model.default_prompt_name or "")
        return self.model.preprocess(list(texts), prompt=prompt)

    @torch.inference_mode()
    def vectors(self, tokens: dict[str, Any]) -> np.ndarray:
        """Return unit-length sentence vectors of one batch of tokens, float32 [B, D]."""
        device = self.model.device
        inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in tokens.items()}
        vectors_BD = self.model(inputs)["sentence_embedding"].float()
        return torch.nn.functional.normalize(vectors_BD, dim=1).cpu().numpy()

    def raw(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit-length sentence vectors, float32 [N, D], N > 0; batched by length."""
        parts = [
            (at, self.vectors(self.tokens([texts[i] for i in at]))) for at in self.batches(texts)
        ]
        out = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
        for at, vectors in parts:
            out[at] = vectors
        return out

    def fit_scaling(self, texts: Sequence[str]) -> None:
        """Fit mean and deviation per dimension on a sample of texts.

        Raises:
            ValueError: no text in the sample.
        """
        if not texts:
            raise ValueError("no text to fit the text encoder's scaling on; check items.text")
        vectors = self.raw(texts)
        self.mean = vectors.mean(axis=0)
        # One factor for all dimensions keeps the angles between centred vectors.
        self.deviation = np.full_like(self.mean, max(vectors.std(axis=0).mean(), 1e-6))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return scaled vectors, float32 [N, D]; N > 0."""
        return self.scaled(self.raw(texts))

    def scaled(self, raw: np.ndarray) -> np.ndarray:
        """Scale unit-length vectors as fitted."""
        assert self.mean is not None and self.deviation is not None, "fit_scaling comes first"
        return (raw - self.mean) / self.deviation

    def save(self, folder: Path) -> None:
        """Write the Sentence-Transformers folder and scaling.npz beside it."""
        self.model.save(str(folder / "model"))
        assert self.mean is not None and self.deviation is not None, "fit_scaling comes first"
        np.savez(folder / "scaling.npz", mean=self.mean, deviation=self.deviation)

    def load_scaling(self, folder: Path) -> None:
        """Load what `save` wrote."""
        stored: Any = np.load(folder / "scaling.npz", allow_pickle=False)
        self.mean, self.deviation = stored["mean"], stored["deviation"]
