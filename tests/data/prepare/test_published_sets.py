"""Recipes of published data sets read files of the layout that their authors document, made small."""

import csv
import gzip
import json
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recsys.schema import read_manifest

NUM_USERS, NUM_ITEMS, NUM_ROWS = 4, 6, 40


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*([header] if header else []), *rows])


def write_lines(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def interactions():
    """(user, item, time step), each user's and item's rows spread over the whole time."""
    return [(row % NUM_USERS, (row * 5 + row // 7) % NUM_ITEMS, row) for row in range(NUM_ROWS)]


def microlens(folder):
    log = [[u + 1, i + 1, 1_600_000_000_000 + 1000 * t] for u, i, t in interactions()]
    # Positives alone: of each pair its first row.
    first = {(user, item): row for user, item, row in reversed(log) for row in [[user, item, row]]}
    write_csv(folder / "MicroLens-100k_pairs.csv", ["user", "item", "timestamp"], first.values())
    titles = [[i + 1, f'Video, "{i}"'] for i in range(NUM_ITEMS)]
    write_csv(folder / "MicroLens-100k_title_en.csv", None, titles)
    (folder / "MicroLens-100k_covers").mkdir()
    for item in range(NUM_ITEMS):
        Image.new("RGB", (4, 4)).save(folder / "MicroLens-100k_covers" / f"{item + 1}.jpg")


def kuairand(folder):
    log = (
        "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward "
        "is_hate long_view play_time_ms duration_ms profile_stay_time comment_stay_time "
        "is_profile_enter is_rand tab"
    ).split()
    rows = [
        [
            u,
            i,
            20220421,
            400,
            1650485801301 + 1000 * t,
            t % 2,
            *[0] * 5,
            1,
            900,
            9000,
            *[0] * 4,
            t % 3,
        ]
        for u, i, t in interactions()
    ]
    for part, name in ((rows[:20], "4_08_to_4_21"), (rows[20:], "4_22_to_5_08")):
        write_csv(folder / "data" / f"log_standard_{name}_pure.csv", log, part)
    users = (
        "user_id user_active_degree is_lowactive_period is_live_streamer is_video_author follow_user_num "
        "follow_user_num_range fans_user_num fans_user_num_range friend_user_num friend_user_num_range "
        "register_days register_days_range"
    ).split() + [f"onehot_feat{n}" for n in range(18)]
    write_csv(
        folder / "data" / "user_features_pure.csv",
        users,
        [
            [
                u,
                "full_active",
                0,
                0,
                1,
                5,
                "(0,10]",
                312,
                "[100,1k)",
                0,
                "0",
                3624,
                "730+",
                *range(18),
            ]
            for u in range(NUM_USERS)
        ],
    )
    videos = (
        "video_id author_id video_type upload_dt upload_type visible_status video_duration server_width "
        "server_height music_id music_type tag"
    ).split()
    write_csv(
        folder / "data" / "video_features_basic_pure.csv",
        videos,
        [
            [
                i,
                441,
                "NORMAL",
                "2020-07-08",
                "ShortImport",
                1,
                17200.0 + i,
                720,
                1280,
                989,
                4,
                "12,65",
            ]
            for i in range(NUM_ITEMS)
        ],
    )


def yambda(folder):
    (folder / "flat" / "50m").mkdir(parents=True)
    users, items, steps = np.array(interactions()).T
    listens = {
        "uid": pa.array(10 * users, pa.uint32()),
        "timestamp": pa.array(106_910 + 5 * steps, pa.uint32()),
        "item_id": pa.array(items, pa.uint32()),
        "is_organic": pa.array(steps % 2, pa.uint8()),
        "played_ratio_pct": pa.array(np.where(steps % 4 == 0, 100, 20), pa.uint16()),
        "track_length_seconds": pa.array([180] * NUM_ROWS, pa.uint32()),
    }
    pq.write_table(pa.table(listens), folder / "flat" / "50m" / "listens.parquet")
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS - 1, 4))
    # The last track has no vector.
    tracks = {
        "item_id": pa.array(range(NUM_ITEMS - 1), pa.uint32()),
        "embed": pa.array(list(10 * vectors), pa.list_(pa.float64())),
        "normalized_embed": pa.array(list(vectors), pa.list_(pa.float64())),
    }
    pq.write_table(pa.table(tracks), folder / "embeddings.parquet")


def amazon(folder):
    reviews = [
        {
            "rating": float(1 + t % 5),
            "title": "Fine",
            "text": "As described.",
            "images": [{"small_image_url": "https://a/1.jpg"}] if t % 2 else [],
            "asin": f"B{i}X",
            "parent_asin": f"B{i}",
            "user_id": f"U{u}",
            "timestamp": 1_588_687_728_923 + 1000 * t,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
        for u, i, t in interactions()
    ]
    write_lines(folder / "Video_Games.jsonl.gz", reviews)
    products = [
        {
            "main_category": "Video Games",
            "title": f"Game {i}",
            "average_rating": 4.2,
            "rating_number": 17,
            "features": ["Two players", "A map"],
            "description": [] if i == 0 else ["A game."],
            "price": None if i == 1 else 9.99 + i,
            "images": [{"thumb": "https://a/t.jpg", "large": "https://a/l.jpg", "hi_res": None}],
            "videos": [],
            "store": "Shop",
            "categories": ["Video Games", "PC"],
            "details": {"Pricing": "new", "Rank": {"PC": i}},
            "parent_asin": f"B{i}",
            "bought_together": None,
        }
        for i in range(NUM_ITEMS)
    ]
    write_lines(folder / "meta_Video_Games.jsonl.gz", products)


def mind(folder, repository):
    for part, rows in (("train", interactions()[:30]), ("dev", interactions()[30:])):
        (folder / f"MINDsmall_{part}").mkdir()
        with open(folder / f"MINDsmall_{part}" / "behaviors.tsv", "w") as file:
            for user, item, step in rows[::2]:
                shown = f"N{item}-1 N{(item + 1) % NUM_ITEMS}-0"
                at = f"11/{9 + step // 8}/2019 {1 + step % 9}:05:58 PM"
                file.write(f"{step}\tU{user}\t{at}\tN9 N8\t{shown}\n")
        with open(folder / f"MINDsmall_{part}" / "news.tsv", "w") as file:
            for item in range(NUM_ITEMS):
                title = f'The "{item}'
                file.write(
                    f"N{item}\tnews\tworld\t{title}\tAn abstract\thttps://a/{item}\t[]\t[]\n"
                )
    header = (repository / "configs" / "data" / "mind.yaml").read_text().splitlines()
    commands = [line.removeprefix("#").strip() for line in header if line.startswith("#   ")]
    assert len(commands) == 2
    for command in commands:
        subprocess.run(["bash", "-ec", command], cwd=folder, check=True)


EXPECTED = {
    # Rows, positives, items, features of items, and facts of the manifest.
    "microlens": (None, None, 6, set(), {"has_images": True, "has_texts": True}),
    "kuairand": (40, 20, 6, {"author", "music", "tag", "video_duration", "upload_type"}, {}),
    "yambda": (40, 10, 5, set(), {"has_texts": False}),
    "amazon": (40, 16, 6, {"main_category", "categories", "price", "store"}, {"has_texts": True}),
    "mind": (40, 20, 6, {"category", "subcategory"}, {"has_texts": True}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_recipe_prepares_files_of_the_published_layout(name, tmp_path, job, repository):
    folder = tmp_path / "raw"
    folder.mkdir()
    if name == "mind":
        mind(folder, repository)
    else:
        {"microlens": microlens, "kuairand": kuairand, "yambda": yambda, "amazon": amazon}[name](
            folder
        )
    done = job("prepare", f"data={name}", f"data.source={folder}", f"workspace={tmp_path / 'w'}")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "w")
    num_rows, num_positives, num_items, features, facts = EXPECTED[name]
    rows = [
        row
        for split in manifest.splits
        for file in sorted((tmp_path / "w" / "prepared" / "interactions" / split).glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    if num_rows is None:  # positives alone are logged, and four negatives are drawn for each
        num_positives = sum(row["label"] for row in rows)
        assert num_positives == len({(u, i) for u, i, _ in interactions()})
        assert len(rows) > num_positives
    else:
        assert (len(rows), sum(row["label"] for row in rows)) == (num_rows, num_positives)
    assert manifest.num_item_rows == num_items + 1
    assert features <= {feature.name for feature in manifest.features}
    assert {key: getattr(manifest, key) for key in facts} == facts
    if name == "yambda":
        assert set(manifest.vectors) == {"audio"}
        assert sum(row["item_row"] == 0 for row in rows) > 0, "a track without a vector is unknown"
    if name == "mind":
        titles = pq.read_table(tmp_path / "w" / "prepared" / "items.parquet")["title"].to_pylist()
        assert 'The "3' in titles
