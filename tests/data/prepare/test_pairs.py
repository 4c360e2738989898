"""Text pairs: cleaned, counted by reason, from files of pairs, from lists and from the items file."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_log import prepared, recipe, write_source

NAMES = """id,title,name,lang,kind
1,カウボーイ,Cowboy,ja,multilingual
1,宇宙牛仔,Cowboy,zh-Hans,multilingual
1,  Cowboy ,Cowboy,en,multilingual
2,,Naruto,ja,multilingual
2,<b>ナルト</b>,Naruto,ja,multilingual
2,ナルト,Naruto,ja,multilingual
2,Ninjas &amp; foxes &lt;br/&gt; <A href='x'>and</A>   ramen,Naruto,en,explanation
,火影忍者,Naruto,,multilingual
3,I <3 a & b <Infinite>,x,en,explanation
"""
ITEMS = """item_id,title,zh,genres,words
10,Ten,十|拾,"red, round","Hello, ten"
20,Twenty,,red,
30,,三十|,"blue, red",Thirty
40,Forty,四十,,Forty
50,Never seen,无,green,No
"""


def pairs_of(tmp_path, pairs, items=ITEMS, **files):
    source = write_source(tmp_path / "raw", items=items)
    for name, text in files.items():
        (source / f"{name}.csv").write_text(text, encoding="utf-8")
    made = recipe(
        source,
        pairs=pairs,
        items={"file": "items.csv", "item_id": "item_id", "title": "title", "text": ["title"]},
    )
    manifest, workspace = prepared(tmp_path, made)
    return manifest, pq.read_table(workspace / "prepared" / "pairs.parquet").to_pylist()


NAMED = {
    "file": "names.csv",
    "anchor": "title",
    "positive": "name",
    "perspective": "kind",
    "entity": "id",
    "language": "lang",
}


def test_every_pair_of_a_file_is_kept_or_counted_by_reason(tmp_path, capsys):
    manifest, pairs = pairs_of(tmp_path, [NAMED], names=NAMES)
    assert manifest.pairs_in == 9 and manifest.pairs_kept == len(pairs) == 6
    assert manifest.pairs_dropped == {"blank": 1, "identical": 1, "repeated": 1}
    # Markup: <b>, and the entities &amp; and &lt;br/&gt;; "<3", "a & b", "<Infinite>" are none.
    assert manifest.pairs_cleaned == 2
    line = "text pairs: 6 of 9 (dropped: 1 blank, 1 identical, 1 repeated; 2 cleaned of markup)"
    assert line in capsys.readouterr().out
    assert [tuple(pair.values()) for pair in pairs] == [
        ("カウボーイ", "Cowboy", "multilingual", "1", "ja"),
        ("宇宙牛仔", "Cowboy", "multilingual", "1", "zh-Hans"),
        ("ナルト", "Naruto", "multilingual", "2", "ja"),
        ("Ninjas & foxes and ramen", "Naruto", "explanation", "2", "en"),
        ("火影忍者", "Naruto", "multilingual", None, None),
        ("I <3 a & b <Infinite>", "x", "explanation", "3", "en"),
    ]


def test_one_form_of_a_character_makes_texts_equal(tmp_path):
    decomposed = "id,title,name\n1,カ\u3099,ガ\n2,e\u0301\u00a0x,y\n"
    given = {"file": "names.csv", "anchor": "title", "positive": "name", "entity": "id"}
    manifest, pairs = pairs_of(
        tmp_path, [{**given, "perspective": "multilingual"}], names=decomposed
    )
    assert manifest.pairs_dropped["identical"] == 1
    assert [pair["anchor"] for pair in pairs] == ["\u00e9 x"]


def test_equal_texts_of_two_languages_or_entities_are_no_repetition(tmp_path):
    names = "id,title,name,lang\n1,x,y,ja\n1,x,y,zh\n2,x,y,ja\n1,x,y,ja\n1, x,y ,ja\n"
    given = {**NAMED, "perspective": "multilingual"}
    manifest, pairs = pairs_of(tmp_path, [given], names=names)
    assert [(p["entity"], p["language"]) for p in pairs] == [("1", "ja"), ("1", "zh"), ("2", "ja")]
    assert manifest.pairs_dropped["repeated"] == 2


def test_lists_of_the_items_file_give_one_pair_for_each_element(tmp_path):
    manifest, pairs = pairs_of(
        tmp_path,
        [
            {
                "file": "items.csv",
                "anchor": "zh",
                "positive": "title",
                "anchor_separator": "|",
                "perspective": "multilingual",
                "language": "zh-Hans",
            },
            {
                "file": "items.csv",
                "anchor": "words",
                "positive": "genres",
                "positive_separator": ", ",
                "perspective": "relation",
            },
        ],
    )
    assert [(p["entity"], p["anchor"], p["positive"]) for p in pairs] == [
        ("10", "十", "Ten"),
        ("10", "拾", "Ten"),
        ("40", "四十", "Forty"),
        ("50", "无", "Never seen"),
        # The comma of "Hello, ten" is no separator: only the other column is a list.
        ("10", "Hello, ten", "red"),
        ("10", "Hello, ten", "round"),
        ("30", "Thirty", "blue"),
        ("30", "Thirty", "red"),
        ("50", "No", "green"),
    ]
    assert {p["language"] for p in pairs[:4]} == {"zh-Hans"} and pairs[4]["language"] is None
    # 10: 2, 20: 1, 30: 2, 40: 1, 50: 1 Chinese names; 2, 1, 2, 1, 1 genres.
    assert manifest.pairs_in == 14
    assert manifest.pairs_dropped == {"blank": 5, "identical": 0, "repeated": 0}


def test_a_parquet_list_needs_no_separator(tmp_path):
    table = pa.table({"name": ["a", "b"], "other": [["x", "y"], []]})
    (tmp_path / "raw").mkdir()
    pq.write_table(table, tmp_path / "raw" / "p.parquet")
    given = {"file": "p.parquet", "anchor": "name", "positive": "other", "perspective": "relation"}
    manifest, pairs = pairs_of(tmp_path, [given])
    assert [(p["anchor"], p["positive"]) for p in pairs] == [("a", "x"), ("a", "y")]
    assert manifest.pairs_in == 3 and manifest.pairs_dropped["blank"] == 1


def test_without_an_entity_column_the_anchor_is_the_entity(tmp_path):
    names = "a,b\ncat,猫\ncat,neko\ndog,犬\n"
    given = {"file": "names.csv", "anchor": "a", "positive": "b", "perspective": "multilingual"}
    _, pairs = pairs_of(tmp_path, [given], names=names)
    assert [p["entity"] for p in pairs] == ["cat", "cat", "dog"]


def test_missing_columns_and_unknown_perspectives_are_named(tmp_path):
    wrong = {**NAMED, "entity": "ident", "language": "tongue", "positive": "nom"}
    with pytest.raises(ValueError) as raised:
        pairs_of(tmp_path, [wrong], names=NAMES)
    for key, column in (("positive", "nom"), ("entity", "ident"), ("language", "tongue")):
        expected = (
            f"names.csv: column '{column}' (pairs[0].{key}) is missing; the file has id, title"
        )
        assert expected in str(raised.value)
    with pytest.raises(
        ValueError, match=r"column 'kind': expected one of multilingual, relation, .*"
    ):
        pairs_of(tmp_path / "b", [NAMED], names=NAMES.replace("en,explanation", "en,rumour"))


def test_a_code_is_a_language_and_anything_else_a_column(tmp_path):
    given = {"file": "names.csv", "anchor": "title", "positive": "name", "perspective": "relation"}
    names = "title,name,ja,lang\na,b,no,ko\n"
    for language, expected in (("ja", "ja"), ("zh-Hans", "zh-Hans"), ("lang", "ko")):
        _, pairs = pairs_of(tmp_path / language, [{**given, "language": language}], names=names)
        assert pairs[0]["language"] == expected
