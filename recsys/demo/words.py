"""The world's words in English, Japanese and Chinese: names, explanations, relations.

Subjects and scenes are seen in the picture; themes are not: they stand in an item's words alone.
Called by world.py.
"""

from dataclasses import dataclass

import numpy as np

LANGUAGES = ("en", "ja", "zh")


@dataclass(frozen=True)
class Word:
    """A term: its names and what it is."""

    names: tuple[str, str, str]
    """English, Japanese, Chinese."""
    explanation: str
    """One English sentence."""


SUBJECT_WORDS = {
    "cat": Word(("cat", "猫", "猫咪"), "A small whiskered hunter that sleeps most of the day."),
    "owl": Word(("owl", "フクロウ", "猫头鹰"), "A night bird with large round eyes."),
    "fish": Word(("fish", "魚", "鱼"), "It breathes water and shines with scales."),
    "whale": Word(("whale", "クジラ", "鲸鱼"), "The largest swimmer, it blows a fountain."),
    "fox": Word(("fox", "キツネ", "狐狸"), "A clever animal with a bushy tail."),
    "rabbit": Word(("rabbit", "ウサギ", "兔子"), "It hops and has very long ears."),
    "turtle": Word(("turtle", "亀", "乌龟"), "It carries its house and takes its time."),
    "butterfly": Word(("butterfly", "蝶", "蝴蝶"), "Two pairs of coloured wings over a thin body."),
    "bird": Word(("bird", "小鳥", "小鸟"), "A small singer with a beak and feathers."),
    "snail": Word(("snail", "カタツムリ", "蜗牛"), "A slow crawler under a coiled shell."),
    "boat": Word(("sailboat", "ヨット", "帆船"), "It crosses the water by the wind in its sails."),
    "house": Word(("house", "家", "房子"), "Four walls and a roof where somebody lives."),
    "lighthouse": Word(("lighthouse", "灯台", "灯塔"), "A tower whose light guides ships."),
    "balloon": Word(("hot-air balloon", "気球", "热气球"), "A basket carried by warm air."),
    "rocket": Word(("rocket", "ロケット", "火箭"), "It leaves the earth on a tail of fire."),
    "tree": Word(("tree", "木", "大树"), "A trunk, a crown of leaves, and shade."),
    "mushroom": Word(("mushroom", "キノコ", "蘑菇"), "A cap on a stalk that grows overnight."),
    "flower": Word(("flower", "花", "花朵"), "Petals around a centre that bees visit."),
    "cactus": Word(("cactus", "サボテン", "仙人掌"), "A plant with spines that stores water."),
    "castle": Word(("castle", "お城", "城堡"), "Walls, towers and a gate for a king."),
    "train": Word(("steam train", "汽車", "蒸汽火车"), "An engine on rails that puffs clouds."),
    "teapot": Word(("teapot", "急須", "茶壶"), "It pours tea from a spout."),
    "umbrella": Word(("umbrella", "傘", "雨伞"), "A roof one carries by the handle."),
    "lantern": Word(("lantern", "提灯", "灯笼"), "A paper lamp that hangs at festivals."),
}

SCENE_WORDS = {
    "meadow": Word(("meadow", "草原", "草地"), "Green hills under a sunny sky."),
    "sea": Word(("sea", "海", "大海"), "Waves up to the horizon."),
    "night": Word(("night", "夜", "夜晚"), "The moon and stars over dark land."),
    "mountains": Word(("mountains", "山", "高山"), "High peaks with snow on top."),
    "city": Word(("city", "街", "城市"), "Tall houses with lit windows."),
    "rain": Word(("rain", "雨", "下雨"), "Drops fall from heavy clouds."),
}

THEME_WORDS = {
    "festival": Word(("festival", "祭り", "节日"), "A day of music, stalls and fireworks."),
    "homecoming": Word(
        ("homecoming", "帰郷", "归乡"), "After a long journey, back to one's village."
    ),
    "first love": Word(
        ("first love", "初恋", "初恋时光"), "A shy feeling that is never forgotten."
    ),
    "adventure": Word(
        ("adventure", "冒険", "冒险"), "Leaving for the unknown with a map and a friend."
    ),
    "mystery": Word(("mystery", "謎", "谜团"), "Something is hidden and clues are left."),
    "farewell": Word(("farewell", "別れ", "离别"), "Two people part at a station."),
    "courage": Word(("courage", "勇気", "勇气"), "Doing what one is afraid of."),
    "solitude": Word(("solitude", "孤独", "孤单"), "Being alone with one's thoughts."),
    "friendship": Word(("friendship", "友情", "友谊"), "Companions who share everything."),
    "legend": Word(("legend", "伝説", "传说"), "An old tale told by the fire."),
    "school days": Word(("school days", "学園", "校园"), "Lessons, clubs and the walk home."),
    "magic": Word(("magic", "魔法", "魔术师"), "A spell that changes the world."),
    "hot springs": Word(
        ("hot springs", "温泉", "泡温泉"), "Warm water and steam after a long day."
    ),
    "harvest": Word(("harvest", "収穫", "丰收"), "Baskets full of rice and fruit."),
    "revenge": Word(("revenge", "復讐", "复仇"), "An old wrong is to be paid back."),
    "dream": Word(("dream", "夢", "梦境"), "What happens when the eyes are closed."),
}

TERMS = {**SUBJECT_WORDS, **SCENE_WORDS, **THEME_WORDS}

RELATIONS = {
    "festival": ("lantern", "fireworks night"), "homecoming": ("house", "train"),
    "first love": ("flower", "umbrella"), "adventure": ("boat", "balloon"),
    "mystery": ("lighthouse", "night"), "farewell": ("train", "rain"), "courage": ("fox", "mountains"),
    "solitude": ("turtle", "sea"), "friendship": ("rabbit", "meadow"), "legend": ("castle", "owl"),
    "school days": ("bird", "city"), "magic": ("cat", "mushroom"), "hot springs": ("teapot", "mountains"),
    "harvest": ("tree", "meadow"), "revenge": ("castle", "night"), "dream": ("whale", "butterfly"),
}  # fmt: skip
"""Theme to what goes with it."""

_JOIN = {"en": ", ", "ja": "、", "zh": "，"}


def name_of(term: str, language: str) -> str:
    """Return a term's name in a language."""
    return TERMS[term].names[LANGUAGES.index(language)]


def caption(terms: list[str], language: str) -> str:
    """Return the terms' names in one language, joined as it joins lists."""
    return _JOIN[language].join(name_of(term, language) for term in terms)


def item_words(subject: str, scene: str, theme: str, rng: np.random.Generator) -> str:
    """Return what people wrote of a picture: its theme always, what is seen only now and then.

    Every word is in a language of its own; their order is free.
    """
    terms = [theme]
    terms += [subject] * (rng.random() < 0.5) + [scene] * (rng.random() < 0.35)
    order = rng.permutation(len(terms))
    return " ".join(name_of(terms[i], LANGUAGES[rng.integers(3)]) for i in order)


@dataclass(frozen=True, order=True)
class TextPair:
    """Two texts that belong together."""

    anchor: str
    positive: str
    perspective: str
    entity: str
    """The terms of a caption; "" for single terms, of which all captions are made: never held out."""
    language: str
    """The anchor's."""


def text_pairs(rng: np.random.Generator, num_captions: int) -> list[TextPair]:
    """Return the pairs of names, captions, explanations and relations."""
    pairs = []
    for term, word in TERMS.items():
        for i in range(3):
            for j in range(i + 1, 3):
                pairs.append(
                    TextPair(word.names[i], word.names[j], "multilingual", "", LANGUAGES[i])
                )
            pairs.append(TextPair(word.names[i], word.explanation, "explanation", "", LANGUAGES[i]))
        for related in RELATIONS.get(term, ()):
            other = name_of(related, "en") if related in TERMS else related
            pairs.append(TextPair(word.names[0], other, "relation", "", "en"))
    subjects, scenes, themes = list(SUBJECT_WORDS), list(SCENE_WORDS), list(THEME_WORDS)
    for _ in range(num_captions):
        terms = [
            themes[rng.integers(len(themes))],
            subjects[rng.integers(len(subjects))],
            scenes[rng.integers(len(scenes))],
        ]
        chosen = [terms[i] for i in rng.permutation(3)[: rng.integers(1, 4)]]
        first, second = rng.permutation(3)[:2]
        pairs.append(
            TextPair(
                anchor=caption(chosen, LANGUAGES[first]),
                positive=caption(
                    [chosen[i] for i in rng.permutation(len(chosen))], LANGUAGES[second]
                ),
                perspective="multilingual",
                entity=" + ".join(sorted(chosen)) if len(chosen) > 1 else "",
                language=LANGUAGES[first],
            )
        )
    return sorted({pair for pair in pairs if pair.anchor != pair.positive})
