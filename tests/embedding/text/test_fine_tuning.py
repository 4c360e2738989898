"""Fine-tuning: learns, resumes where it was killed, and does not depend on the number of ranks."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedding.text.config import TextConfig
from embedding.text.encoder import TextEncoder, has_bfloat16, load_text_encoder, set_prompts
from embedding.text.fine_tuning import (
    PairTrainer,
    fine_tune,
    newest_checkpoint,
    read_evaluations,
)
from embedding.text.pairs import BatchPlan, Pairs
from embedding.text.retrieval import retrieval_tasks
from embedding.text.vocabulary import extend_vocabulary, word_pieces
from recsys.runtime.env import Env
from tests.embedding.text.fine_tuning_worker import pairs_of_words, scratch
from tests.processes import run_worker

CPU = torch.device("cpu")
ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=CPU)
WORKER = Path(__file__).with_name("fine_tuning_worker.py")


def train(model, pairs, folder, tasks=(), **changes):
    plan = {"epochs": 40, "batch_size": 12, "weights": {"multilingual": 1.0}, "max_pairs": 1000}
    settings = {
        "pair_max_tokens": 8,
        "learning_rate": 5e-3,
        "evaluations": 1,
        "save_every_steps": 1000,
        "batch_size": 8,
    }
    plan |= {name: changes.pop(name) for name in list(changes) if name in plan}
    batches = BatchPlan(pairs, **plan, num_ranks=1, seed=0)
    config = TextConfig(**settings | changes)
    return fine_tune(
        model,
        pairs,
        list(tasks),
        batches=batches,
        config=config,
        folder=folder,
        seed=0,
        env=ALONE,
    )


def test_an_encoder_learns_translations_and_leaves_a_standard_folder(tmp_path):
    pairs = pairs_of_words(24)
    model = scratch(pairs, tmp_path)
    evaluations = train(model, pairs, tmp_path / "run", retrieval_tasks(pairs, 100))
    assert [e.step for e in evaluations] == [0, 40, 80]
    before, _, after = (e.results[0].recall_at_1 for e in evaluations)
    assert before < 0.3 and after > 0.9
    assert read_evaluations(tmp_path / "run" / "evaluations.json") == evaluations

    encoder = TextEncoder(model, 8)
    encoder.fit_scaling(pairs.anchor + pairs.positive)
    encoder.save(tmp_path)
    assert {"modules.json", "config_sentence_transformers.json", "1_Pooling"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }
    loaded = TextEncoder(load_text_encoder(str(tmp_path / "model"), 8, CPU), 8)
    loaded.load_scaling(tmp_path)
    np.testing.assert_allclose(loaded.encode(pairs.anchor), encoder.encode(pairs.anchor), atol=1e-5)


def test_pairs_are_trained_and_examined_with_the_prompts_they_are_encoded_with(tmp_path):
    pairs = pairs_of_words(24)
    model = scratch(pairs, tmp_path)
    set_prompts(model, "word1 ", "word2 ")
    asked = []
    encode = model.encode

    def listening(texts, **settings):
        asked.append((texts[0], settings["prompt"]))
        return encode(texts, **settings)

    model.encode = listening
    collated = []
    original = PairTrainer.compute_loss

    def looking(self, model, inputs, *more, **named):
        collated.append({key: ids[0].tolist() for key, ids in inputs.items() if "input_ids" in key})
        return original(self, model, inputs, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairTrainer, "compute_loss", looking)
        train(model, pairs, tmp_path / "run", retrieval_tasks(pairs, 100), epochs=1)
    first, second = (
        model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for prompt in ("word2", "word1")
    )
    for batch in collated:
        assert batch["anchor_input_ids"][: len(first)] == first
        assert batch["positive_input_ids"][: len(second)] == second
    assert {prompt for _, prompt in asked} == {"word1 ", "word2 "}
    assert all(text.startswith("word") == (prompt == "word2 ") for text, prompt in asked)


def test_texts_longer_than_the_model_are_cut(tmp_path):
    pairs = pairs_of_words(24)
    model = scratch(pairs, tmp_path)
    longer = Pairs([f"{a} " * 40 for a in pairs.anchor], *list(vars(pairs).values())[1:])
    train(model, longer, tmp_path / "run", epochs=1, pair_max_tokens=128)
    assert model.preprocess(longer.anchor)["input_ids"].shape[1] == 8


def test_a_loss_that_is_no_number_ends_training_with_a_sentence(tmp_path):
    pairs = pairs_of_words(24)
    model = scratch(pairs, tmp_path)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 1; lower encoder.text.learn"):
        train(model, pairs, tmp_path / "run")


def test_a_checkpoint_counts_once_every_rank_has_finished_it(tmp_path):
    for step in (5, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-5" / "finished").touch()
    (tmp_path / "checkpoint-10" / "finished").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_space_for_its_part_of_a_checkpoint_stops_both(tmp_path, rank):
    run_worker(WORKER, tmp_path, rank, ranks=2, seconds=120)
    for file in ("raised0", "raised1"):
        text = (tmp_path / file).read_text()
        assert "the disk is full" in text and int(text.split()[-2]) < 60, text
    assert newest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.slow
def test_two_ranks_end_with_the_weights_of_one(tmp_path):
    for name, ranks in (("one", 0), ("two", 2)):
        (tmp_path / name).mkdir()
        run_worker(WORKER, tmp_path / name, ranks=ranks, seconds=240)
    one, first, second = (
        torch.load(tmp_path / file)
        for file in ("one/weights0.pt", "two/weights0.pt", "two/weights1.pt")
    )
    for name, weights in one.items():
        torch.testing.assert_close(first[name], weights, atol=2e-4, rtol=1e-3)
        assert torch.equal(first[name], second[name])


@pytest.fixture(scope="module")
def words_only(tmp_path_factory, job):
    """Prepared data of a small drawn world without its pictures."""
    folder = tmp_path_factory.mktemp("words")
    sizes = ["world.num_items=60", "world.num_users=30", "world.num_exposures=400"]
    sizes += ["world.num_captions=600"]
    assert job("demo", f"workspace={folder}", "processes=1", *sizes).returncode == 0
    done = job("prepare", "data=demo", "data.items.image=null", f"workspace={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


SETTINGS = ["encoder.text.epochs=8", "encoder.text.evaluations=3", "encoder.text.max_queries=100"]


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_with_the_same_weights(words_only, tmp_path, job, repository):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prepared").symlink_to(words_only / "prepared")
    arguments = ["data=demo", *SETTINGS, "encoder.text.save_every_steps=10"]
    whole = job("embed", f"workspace={tmp_path / 'whole'}", *arguments)
    assert whole.returncode == 0, whole.stderr[-2000:]

    killed = tmp_path / "killed"
    running = subprocess.Popen(
        [
            sys.executable,
            str(repository / "launch" / "embed.py"),
            f"workspace={killed}",
            *arguments,
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = killed / "encoders" / ".text.training" / "checkpoints"
    deadline = time.monotonic() + 200
    while newest_checkpoint(checkpoints) is None:
        assert running.poll() is None and time.monotonic() < deadline, "no checkpoint was seen"
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (killed / "encoders" / "text").exists()

    again = job("embed", f"workspace={killed}", *arguments)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "text encoder: going on from step" in again.stdout
    weights = [
        load_file(folder / "encoders" / "text" / "model" / "model.safetensors")
        for folder in (tmp_path / "whole", killed)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    results = [
        json.loads((folder / "encoders" / "text" / "evaluation.json").read_text())
        for folder in (tmp_path / "whole", killed)
    ]
    assert results[0] == results[1]
    assert not checkpoints.parent.exists()


@pytest.mark.slow
def test_the_job_shows_and_keeps_what_it_found(words_only, tmp_path, job):
    (tmp_path / "prepared").symlink_to(words_only / "prepared")
    done = job("embed", "data=demo", f"workspace={tmp_path}", *SETTINGS, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "text encoder on entities unseen in training, before and after" in done.stdout
    assert "Warning" not in done.stderr
    folder = tmp_path / "encoders" / "text"
    kept = json.loads((folder / "evaluation.json").read_text())
    first, *_, last = kept["evaluations"]
    assert first["step"] == 0 and last["step"] > 0
    assert last["results"][0]["num_queries"] >= 20
    assert last["results"][0]["mrr"] > first["results"][0]["mrr"]
    assert kept["counts"]["entities_held_out"] > 10
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_equal_texts_make_equal_tokenizers():
    texts = [f"{a}{b} {b}{a}{c}" for a in "ab" for b in "cdé" for c in "アイウ猫"]
    made = [word_pieces(texts, 60).get_vocab() for _ in range(4)]
    assert all(vocabulary == made[0] for vocabulary in made)
    assert {"[UNK]", "猫", "##ア"} <= made[0].keys()


def test_known_characters_stay_and_unknown_ones_become_tokens(minilm, tmp_path):
    model = load_text_encoder(minilm, 32, CPU)
    texts = ["銀河英雄伝説", "銀河鉄道", "cowboy", "鉄腕"]
    before = model.encode(["cowboy"])
    assert model.tokenizer.tokenize("銀").count("[UNK]") == 1
    added = extend_vocabulary(model, texts, 10, seed=0)
    # 銀 and 鉄 stand twice; what stands once is left unknown, and 河 has a token already.
    assert added == ["鉄", "銀"]
    model.save(str(tmp_path / "m"), create_model_card=False)
    loaded = load_text_encoder(str(tmp_path / "m"), 32, CPU)
    assert [token.strip() for token in loaded.tokenizer.tokenize("銀鉄")] == ["銀", "鉄"]
    np.testing.assert_allclose(loaded.encode(["cowboy"]), before, atol=1e-5)
    np.testing.assert_allclose(loaded.encode(["銀鉄"]), model.encode(["銀鉄"]), atol=1e-5)


def test_precision_is_a_name_or_what_the_machine_has():
    assert has_bfloat16("bfloat16", CPU) and not has_bfloat16("float32", CPU)
    assert isinstance(has_bfloat16("auto", CPU), bool)
