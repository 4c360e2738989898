"""Sample users of the evaluation report: liked and recommended items, with modality weights.

In: SampleUser records and the items they name. Out: HTML. Called by evaluation_page.py.
"""

import html
from collections.abc import Mapping, Sequence

from recsys.evaluation.samples import Recommendation, SampleUser
from recsys.report.items import Item, picture_html
from recsys.report.page import COLOURS

SHARES = {"semantic": "content", "style": "style", "text": "text", "ids": "ids"}
"""What the weights are called beside a recommendation."""

USERS_STYLE = """
.user{margin:18px 0}.user h3{margin:0 0 2px;font-size:16px}
.user h4{margin:12px 0 6px;font-size:13.5px;color:var(--soft);font-weight:600}
.items{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:12px}
.items>div{font-size:12.5px;line-height:1.3;min-width:0}
.liked{grid-template-columns:repeat(auto-fill,minmax(84px,1fr))}
.picture{position:relative;display:block;aspect-ratio:1;border-radius:8px;overflow:hidden;
background:var(--line)}
.picture img{display:block;width:100%;height:100%;object-fit:cover}
.picture .empty{position:absolute;inset:0;display:grid;place-content:center;text-align:center;
color:var(--soft);font-size:12px}
.score,.hit{position:absolute;bottom:5px;padding:0 6px;border-radius:5px;background:#000a;color:#fff;
font-size:11px;line-height:17px;font-variant-numeric:tabular-nums}.score{right:5px}
.hit{left:5px;background:#1f8a57}
.plain .score,.plain .hit{position:static;margin-left:4px}
.name{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden;
overflow-wrap:anywhere;margin-top:5px}
.by{color:var(--soft);overflow-wrap:anywhere}
.mix{display:flex;height:9px;border-radius:3px;overflow:hidden;margin-top:5px;background:var(--line)}
.mix i{display:block;height:100%}
.key{display:inline-flex;align-items:center;gap:5px;margin-right:14px;font-size:13px;
color:var(--soft)}
.key i{width:11px;height:11px;border-radius:3px;display:inline-block}
"""


def users_html(users: Sequence[SampleUser], items: Mapping[int, Item], names: list[str]) -> str:
    """Return the sample users with their liked and recommended items.

    Args:
        items: by item row.
        names: of the modalities, in the order of the model's weights.
    """
    with_weights = any(r.weights for user in users for r in user.recommended)
    key = ""
    if with_weights:
        key = "".join(
            f'<span class="key"><i class="c{index}"></i>{html.escape(SHARES.get(name, name))}</span>'
            for index, name in enumerate(names)
        )
        key = f"<p>The bar below a recommendation is what counted in it: {key}</p>"
    with_pictures = any(items[row].picture is not None for user in users for row in user.item_rows)
    return key + "".join(_user(user, items, names, with_pictures) for user in users)


def _user(
    user: SampleUser, items: Mapping[int, Item], names: list[str], with_pictures: bool
) -> str:
    facts = [f"{user.num_liked:,} liked before"]
    if user.planted:
        mix = ", ".join(f"{SHARES.get(n, n)} {share:.0%}" for n, share in user.planted.items())
        facts.append(f"drawn to care for {mix}")
    liked = "".join(f"<div>{_item(items[row], with_pictures, 168)}</div>" for row in user.liked)
    recommended = "".join(
        f"<div>{_recommendation(r, items[r.item_row], names, with_pictures)}</div>"
        for r in user.recommended
    )
    past = f'<h4>liked, latest first</h4><div class="items liked">{liked}</div>' if liked else ""
    return (
        f'<section class="user"><h3>user {html.escape(user.user_id)}</h3>'
        f"<p>{html.escape('; '.join(facts))}</p>{past}"
        f'<h4>recommended, best first</h4><div class="items">{recommended}</div></section>'
    )


def _item(item: Item, with_pictures: bool, side: int, over: str = "") -> str:
    picture = (
        picture_html(item, side, over) if with_pictures else f'<div class="plain">{over}</div>'
    )
    by = f'<div class="by">{html.escape(item.artist)}</div>' if item.artist else ""
    return f'{picture}<div class="name" title="{_title(item)}">{html.escape(item.name)}</div>{by}'


def _title(item: Item) -> str:
    tags = f"; {', '.join(item.tags[:8])}" if item.tags else ""
    return html.escape(f"{item.name} (id {item.item_id}){tags}")


def _recommendation(
    found: Recommendation, item: Item, names: list[str], with_pictures: bool
) -> str:
    over = f'<span class="score">{found.score:.2f}</span>'
    over += '<span class="hit">liked it</span>' if found.is_positive else ""
    mix = ""
    if found.weights:
        said = ", ".join(f"{SHARES.get(n, n)} {found.weights[n]:.0%}" for n in names)
        mix = "".join(
            f'<i class="c{index % len(COLOURS)}" style="width:{100 * found.weights[name]:.1f}%"></i>'
            for index, name in enumerate(names)
        )
        mix = f'<div class="mix" title="{html.escape(said)}">{mix}</div>'
    return _item(item, with_pictures, 236, over) + mix
