// The whole catalogue: a list of any length, loaded page by page where it is looked at.
import { get } from "./api.js";
import { failed, grid, head, named, newTurn, present, say, waiting } from "./page.js";
import { become, tileOf } from "./person.js";

const PAGE = 200;

export async function showCatalogue() {
  become(null);
  const isCurrent = newTurn();
  head("Everything", "The whole catalogue.");
  waiting();
  try {
    const first = await get(`/v1/items?start=0&limit=${PAGE}`);
    if (!isCurrent()) return;
    named({ view: "all" });
    head("Everything", `${first.total.toLocaleString("en")} pictures, in the catalogue's order.`);
    present(paged(first, isCurrent), tileOf, { caption: 4.2 });
    say(first.total ? "" : "The catalogue is empty.");
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

// A list whose pages are asked for once, when their places are near the viewport.
function paged(first, isCurrent) {
  const pages = new Map([[0, first.items]]);
  const load = async (page) => {
    pages.set(page, null);
    try {
      const found = await get(`/v1/items?start=${page * PAGE}&limit=${PAGE}`);
      pages.set(page, found.items);
      if (isCurrent()) grid.render();
    } catch (error) {
      pages.delete(page); // asked for again when it is near again
      if (isCurrent()) say(error.message, true);
    }
  };
  return {
    length: first.total,
    at: (place) => pages.get(Math.floor(place / PAGE))?.[place % PAGE],
    need: (from, to) => {
      for (let page = Math.floor(from / PAGE); page * PAGE < to; page += 1) if (!pages.has(page)) load(page);
    },
  };
}
