"""Lists of many users: every user once, restartable part by part, the same on any number of ranks."""

from types import SimpleNamespace
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.bundle.vocabulary import Vocabulary, write_vocabulary
from recsys.errors import UserError
from recsys.listing import check_listing
from recsys.runtime.env import Env
from recsys.serving import lists
from recsys.serving.lists import ListsConfig, finish, open_users, open_work, write_parts
from recsys.serving.requests import Reason, Recommendations, RecommendedItem

NUM_USERS = 23


@pytest.fixture
def bundle(tmp_path):
    """What lists read of a bundle: a version, a place and the users u1 ... u23; row 7 has no id."""
    ids = [(row, f"u{row}") for row in range(1, NUM_USERS + 1) if row != 7]
    rows, texts = zip(*ids, strict=True)
    write_vocabulary(
        tmp_path / "vocab",
        "user_id",
        num_rows=NUM_USERS + 1,
        blocks=[(pa.array(rows).to_numpy(), list(texts))],
    )
    return SimpleNamespace(
        version="run-9-0badcafe",
        folder=tmp_path / "W" / "bundles" / "run-9-0badcafe",
        vocabularies={"user_id": Vocabulary(tmp_path / "vocab", "user_id")},
    )


class Recommender:
    """Recommends items named after the user, and fails after so many batches."""

    def __init__(self, fails_after: int = 1000):
        self.num_batches, self.fails_after = 0, fails_after

    def recommend_many(self, requests):
        self.num_batches += 1
        if self.num_batches > self.fails_after:
            raise KeyboardInterrupt
        return [
            Recommendations(
                version="run-9-0badcafe",
                items=[
                    RecommendedItem(
                        rank=place,
                        id=f"{request.user}:{place}",
                        score=1 / place,
                        weights={"style": 0.75, "text": 0.25},
                        title=None,
                        artist=None,
                        routes=["model"],
                        reason=Reason("Because.", "style") if request.explain else None,
                    )
                    for place in range(1, request.k + 1)
                ],
                known_user=True,
                history=3,
                unknown_likes=[],
            )
            for request in requests
        ]


def rank(number=0, of=1):
    return Env(
        rank=number,
        world_size=of,
        local_rank=number,
        local_world_size=of,
        device=torch.device("cpu"),
    )


def config(**keys):
    defaults = {"bundle": "B", "k": 2, "users_per_part": 5, "users_per_batch": 3}
    return ListsConfig(**{**defaults, **keys})


def written(bundle, asked, recommender=None, ranks=1):
    """Make the lists with one rank after the other, as ranks that do not wait for each other."""
    users = open_users(asked, bundle)
    work = open_work(asked, bundle, users)
    for number in range(ranks):
        write_parts(work, users, recommender or Recommender(), asked, rank(number, ranks))
    finish(work)
    return pq.read_table(work.parts).to_pylist()


def test_every_user_of_the_bundle_has_one_list(bundle):
    rows = written(bundle, config())
    users = [f"u{row}" for row in range(1, NUM_USERS + 1) if row != 7]
    assert [(r["user"], r["rank"], r["item"]) for r in rows] == [
        (user, place, f"{user}:{place}") for user in users for place in (1, 2)
    ]
    assert rows[1]["score"] == 0.5 and rows[1]["reason"] is None
    assert dict(rows[0]["weights"]) == {"style": 0.75, "text": 0.25}


def test_lists_are_beside_the_bundles_and_their_listing_comes_last(bundle):
    written(bundle, config())
    folder = bundle.folder.parents[1] / "lists" / bundle.version
    assert sorted(path.name for path in folder.iterdir()) == ["files.json", "lists.json", "parts"]
    assert sorted(path.name for path in (folder / "parts").iterdir()) == [
        f"part-0000{n}.parquet" for n in range(5)
    ]
    check_listing(folder, "")


def test_lists_do_not_depend_on_the_number_of_ranks(bundle, tmp_path):
    one = written(bundle, config(out=str(tmp_path / "one")))
    three = written(bundle, config(out=str(tmp_path / "three")), ranks=3)
    assert one == three


def test_stopped_job_goes_on_with_the_parts_that_are_missing(bundle, tmp_path):
    whole = written(bundle, config(out=str(tmp_path / "whole")))
    asked = config(out=str(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        written(bundle, asked, Recommender(fails_after=5))  # two batches a part: within part 2
    assert not (tmp_path / "stopped" / "files.json").exists()
    assert sorted(p.name for p in (tmp_path / "stopped" / "parts").iterdir()) == [
        *("part-00000.parquet", "part-00001.parquet"),
    ]
    second = Recommender()
    assert written(bundle, asked, second) == whole
    assert second.num_batches == 5, "parts 2, 3 and 4 of 5, 5 and 3 users"
    third = Recommender(fails_after=0)
    assert written(bundle, asked, third) == whole, "nothing is left to do"


def test_part_is_written_in_groups_of_rows_and_never_held_whole(bundle, monkeypatch):
    monkeypatch.setattr(lists, "_ROWS_OF_GROUP", 4)
    written(bundle, config(users_per_part=1000))
    (part,) = (bundle.folder.parents[1] / "lists" / bundle.version / "parts").iterdir()
    metadata = pq.read_metadata(part)
    groups = [metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)]
    assert sum(groups) == 2 * (NUM_USERS - 1)
    assert max(groups) == 6, "two rows of each user of a batch of three, which are 4 or more"


def test_part_that_is_missing_at_the_end_is_named(bundle):
    asked = config()
    users = open_users(asked, bundle)
    work = open_work(asked, bundle, users)
    write_parts(work, users, Recommender(), asked, rank(0, 2))  # rank 1 never came
    with pytest.raises(UserError, match=r"part-00001\.parquet.*run launch/recommend.py again"):
        finish(work)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"k": 3}, "k=2, now it is 3"), ({"explain": True}, "explain=False, now it is True")],
)
def test_folder_with_lists_of_other_settings_is_refused(bundle, changed, sentence):
    written(bundle, config())
    with pytest.raises(UserError, match=sentence):
        written(bundle, config(**changed))


def test_folder_with_lists_of_another_bundle_or_other_files_is_refused(bundle, tmp_path):
    asked = config(out=str(tmp_path / "out"))
    written(bundle, asked)
    bundle.version = "run-10-0badcafe"
    with pytest.raises(UserError, match=r"bundle=run-9-0badcafe, now it is run-10-0badcafe"):
        written(bundle, asked)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files; name an empty folder"):
        written(bundle, config(out=str(tmp_path / "full")))


def test_users_of_a_text_file_have_lists_in_its_order(bundle, tmp_path):
    (tmp_path / "ids.txt").write_text("u3\n\nnobody\n  u1 \n", encoding="utf-8")
    rows = written(bundle, config(users=str(tmp_path / "ids.txt"), k=1))
    assert [row["user"] for row in rows] == ["u3", "nobody", "u1"]


def test_users_of_a_parquet_file_are_read_from_the_column_named(bundle, tmp_path):
    path = tmp_path / "people.parquet"
    pq.write_table(pa.table({"who": [3, None, 1], "age": [1, 2, 3]}), path)
    rows = written(bundle, config(users=str(path), user_column="who", k=1, explain=True))
    assert [(row["user"], row["reason"]) for row in rows] == [("3", "Because."), ("1", "Because.")]
    with pytest.raises(UserError, match=r"no column 'user_id'; it has who, age; set user_column="):
        open_users(config(users=str(path)), bundle)


def test_users_that_are_none_are_refused(bundle, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="no user in it"):
        open_users(config(users=str(tmp_path / "empty.txt")), bundle)
    with pytest.raises(UserError, match="no such file; expected `all`"):
        open_users(config(users="al"), bundle)
    bundle.vocabularies = {}
    with pytest.raises(UserError, match="knows no users; name a file"):
        open_users(config(), bundle)


def test_progress_counts_the_users_of_the_first_rank(bundle, monkeypatch):
    bar = Mock()
    progress_bar = Mock(return_value=bar)
    monkeypatch.setattr(lists, "progress_bar", progress_bar)
    asked = config()
    users = open_users(asked, bundle)
    work = open_work(asked, bundle, users)
    assert write_parts(work, users, Recommender(), asked, rank()) == 22
    progress_bar.assert_called_once_with(desc="lists", unit="user", total=23, is_shown=True)
    moves = [call.args[0] for call in bar.update.call_args_list]
    assert sum(moves) == 22 and len(moves) == 9, "one a batch"
    bar.close.assert_called_once_with()
