"""Settings of the text encoder."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from embedding.holdout import tenths_problems
from embedding.text.pairs import PERSPECTIVES


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text encoder; presets in configs/encoder/text/."""

    path: str = "scratch"
    """`scratch`, a Sentence-Transformers folder, or a hub name."""
    max_tokens: int = 128
    """Longer texts are cut."""
    prompt: str | None = None
    """Text before every text of an item and every positive of a pair, such as `passage: ` for E5, or the
    name of one of the model's prompts; null: the model's default prompt, if it has one."""
    query_prompt: str | None = None
    """The same before words that people search with and before every anchor of a pair; null: as
    `prompt`."""
    batch_size: int = 64
    """Texts a forward pass."""
    epochs: int = 0
    """Passes over the pairs (fine-tuning); 0: as loaded. `scratch` needs at least 1."""
    learning_rate: float = 5e-5
    """Peak step size; 10 % of the steps warm up, then it falls to 0."""
    pair_batch_size: Annotated[int, Field(ge=2)] = 80
    """Pairs a step over all ranks; the other pairs of the batch are the negatives."""
    pair_max_tokens: int = 128
    """Longer texts are cut in training (at `max_tokens` if that is less): long ones cost most of it."""
    perspective_weights: dict[str, float] = field(
        default_factory=lambda: {"multilingual": 1.0, "relation": 1.0, "explanation": 1.0}
    )
    """Share of each perspective's pairs that an epoch takes; 0.25: a quarter of them, 2: each twice,
    0: none. A key `perspective/language`, such as `multilingual/zh-Hans`, is for one language."""
    max_pairs: int = 200_000
    """Most pairs an epoch takes; beyond it all shares shrink by the same factor. 0: all of them."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the forward passes in training: `float32`, `bfloat16`, or `auto` (bfloat16 where the
    machine has it)."""
    held_out_tenths: int = 1
    """Tenths of the entities, chosen by name, that training never sees; they examine the encoder."""
    max_queries: int = 1000
    """Most queries per perspective and language in an evaluation; 0: no evaluation."""
    evaluations: int = 3
    """Evaluations while training, evenly spaced, beside those before and after."""
    save_every_steps: int = 200
    """Steps between checkpoints: what a killed run can lose."""
    extend_vocabulary: int = 0
    """Most characters that the tokenizer does not know and learns from the training pairs."""
    vocabulary_size: int = 8000
    """Tokens of the scratch tokenizer."""
    hidden_dim: int = 128
    """Width of the scratch transformer."""
    num_layers: int = 2
    """Layers of the scratch transformer."""

    def problems(self) -> list[str]:
        """Return a text for weights of no perspective, and for a share that cannot be held out."""
        weights, found = self.perspective_weights, tenths_problems(self.held_out_tenths)
        named = {name.split("/")[0] for name in weights}
        if named - set(PERSPECTIVES) or min(weights.values(), default=0.0) < 0:
            found.append(
                f"perspective_weights={weights}: expected numbers of 0 or more for "
                f"{', '.join(PERSPECTIVES)}, or for one of their languages, such as "
                f"multilingual/ja"
            )
        return found
