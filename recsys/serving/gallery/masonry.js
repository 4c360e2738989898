// Virtual masonry: tiles in columns, of which only those near the viewport are in the document.
import { make, skeleton } from "./tiles.js";

const LEAST_WIDTH = 190; // of a column, in pixels; a phone has two columns anyway
const GLIDE = { duration: 420, easing: "cubic-bezier(.2,.8,.2,1)" };
const OVERSCAN = 0.75; // of the viewport's height, above and below it

// A list of items that are there.
export const listed = (items) => ({ length: items.length, at: (place) => items[place], need: () => {} });

export class Masonry {
  // `grid`: a list element. `makeTile(item, place)` returns a tile's element, `left(element)` is told of one
  // that goes. `onend()` is called when the last tiles are near.
  constructor(grid, { makeTile, left = () => {}, onend = () => {} }) {
    Object.assign(this, { grid, makeTile, left, onend });
    this.list = listed([]);
    this.options = { caption: 8.2, large: [] };
    this.shown = new Map(); // element and place by key
    this.asked = false;
    addEventListener("scroll", () => this.renderSoon(), { passive: true });
    this.width = 0;
    new ResizeObserver(() => {
      if (grid.clientWidth !== this.width) this.relayout();
      else this.renderSoon();
    }).observe(grid);
    grid.addEventListener("keydown", (event) => this.move(event));
  }

  // Show a list: `length`, `at(place)` (undefined: not loaded yet) and `need(first, last)`.
  // `caption`: height of the words in rem; `large`: places of tiles that are two columns wide. Tiles that
  // stay glide to where they are now.
  show(list, { caption = 8.2, large = [] } = {}) {
    Object.assign(this, { list, options: { caption, large } });
    this.relayout(true);
  }

  // The list has grown, or items of it were loaded: nothing that is shown moves.
  extend(list = this.list) {
    this.list = list;
    this.place(this.y.length);
    this.render();
  }

  relayout(glides = false) {
    const style = getComputedStyle(this.grid);
    this.width = this.grid.clientWidth;
    this.gap = parseFloat(style.columnGap) || 0;
    const columns = Math.max(2, Math.floor((this.width + this.gap) / (LEAST_WIDTH + this.gap)));
    this.column = (this.width - this.gap * (columns - 1)) / columns;
    this.words = this.options.caption * parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.bottoms = new Float64Array(columns);
    this.x = []; this.y = []; this.spans = []; this.asked = false;
    this.place(0);
    this.render(glides);
  }

  // Place tiles from `start` on, each into the shortest column (a large one: into the two shortest side by side).
  place(start) {
    const { bottoms, column, gap } = this;
    for (let place = start; place < this.list.length; place += 1) {
      const span = this.options.large.includes(place) ? 2 : 1;
      let best = 0;
      let top = Infinity;
      for (let first = 0; first + span <= bottoms.length; first += 1) {
        const reach = span === 1 ? bottoms[first] : Math.max(bottoms[first], bottoms[first + 1]);
        if (reach < top - 0.5) [best, top] = [first, reach];
      }
      this.x.push(best * (column + gap));
      this.y.push(top);
      this.spans.push(span);
      bottoms.fill(top + this.height(span) + gap, best, best + span);
    }
    this.tallest = this.height(this.options.large.length ? 2 : 1);
    this.grid.style.height = `${Math.max(0, Math.max(...bottoms) - gap)}px`;
    this.asked = false;
  }

  span(span) { return span * this.column + (span - 1) * this.gap; }
  height(span) { return this.span(span) + this.words; }

  renderSoon() {
    this.frame ??= requestAnimationFrame(() => this.render());
  }

  // Places [first, last) whose tiles are near the viewport.
  near() {
    const top = -this.grid.getBoundingClientRect().top;
    const over = OVERSCAN * innerHeight;
    const from = top - over - this.tallest;
    let [low, high] = [0, this.y.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.y[middle] < from) low = middle + 1; else high = middle;
    }
    let last = low;
    while (last < this.y.length && this.y[last] < top + innerHeight + over) last += 1;
    return [low, last];
  }

  // `isNew`: a list is shown anew, so that every tile is made anew and glides from where it was.
  render(isNew = false) {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const [first, last] = this.near();
    this.list.need(first, last);
    const focused = this.grid.contains(document.activeElement) ? document.activeElement : null;
    const wanted = new Map();
    for (let place = first; place < last; place += 1) wanted.set(this.list.at(place)?.id ?? `\u0000${place}`, place);
    if (!isNew) this.pin(focused, wanted);
    const before = this.shown;
    this.shown = new Map();
    for (const [key, { element }] of before) {
      if (isNew || !wanted.has(key)) {
        this.left(element);
        element.remove();
      }
    }
    const glides = isNew && before.size && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    let next = this.grid.firstElementChild;
    for (const [key, place] of wanted) {
      const old = before.get(key)?.element;
      const element = old && !isNew ? old : this.made(place, old);
      this.shown.set(key, { element, place });
      if (element === next) next = next.nextElementSibling;
      else this.grid.insertBefore(element, next);
      this.put(element, place);
      if (glides) this.glide(element, old?.at);
    }
    this.refocus(focused);
    if (last >= this.y.length && this.y.length && !this.asked) {
      this.asked = true;
      this.onend();
    }
  }

  // A new tile; it takes the picture of the tile that it replaces, which is loaded already.
  made(place, old) {
    const item = this.list.at(place);
    if (!item) return skeleton();
    const element = this.makeTile(item, place);
    const picture = old?.querySelector("img");
    if (picture) element.querySelector("img").replaceWith(picture);
    return element;
  }

  refocus(focused) {
    if (!focused || document.activeElement === focused) return;
    const id = focused.closest("li")?.dataset.id;
    const again = this.grid.contains(focused) ? focused
      : id && this.grid.querySelector(`li[data-id="${CSS.escape(id)}"] .${focused.classList[0]}`);
    again?.focus?.({ preventScroll: true });
  }

  // Keep the tile that has the focus, wherever it is, in the order of places.
  pin(focused, wanted) {
    const element = focused?.closest("li");
    for (const [key, shown] of element ? this.shown : []) {
      if (shown.element !== element || wanted.has(key) || this.list.at(shown.place)?.id !== key) continue;
      const all = [...wanted, [key, shown.place]].sort((a, b) => a[1] - b[1]);
      wanted.clear();
      for (const [k, place] of all) wanted.set(k, place);
    }
  }

  put(element, place) {
    const span = this.spans[place];
    const [x, y, width, height] = [this.x[place], this.y[place], this.span(span), this.height(span)];
    element.at = { x, y, width };
    element.classList.toggle("large", span === 2);
    element.setAttribute("aria-setsize", this.y.length);
    element.setAttribute("aria-posinset", place + 1);
    Object.assign(element.style, { transform: `translate(${x}px, ${y}px)`, width: `${width}px`, height: `${height}px` });
  }

  glide(element, from) {
    const to = element.at;
    if (!from) element.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 300 });
    else if (from.x !== to.x || from.y !== to.y || from.width !== to.width) {
      const start = `translate(${from.x}px, ${from.y}px) scale(${from.width / to.width})`;
      element.animate([{ transformOrigin: "0 0", transform: start },
        { transformOrigin: "0 0", transform: `translate(${to.x}px, ${to.y}px)` }], GLIDE);
    }
  }

  // Arrow keys lead from tile to tile.
  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.bottoms.length, ArrowUp: -this.bottoms.length }[event.key];
    const element = event.target.closest("li");
    if (!step || !element) return;
    const { place } = [...this.shown.values()].find((shown) => shown.element === element) ?? {};
    const next = place + step;
    if (!(next >= 0 && next < this.y.length)) return;
    event.preventDefault();
    const bottom = this.grid.getBoundingClientRect().top + this.y[next] + this.height(this.spans[next]);
    const top = bottom - this.height(this.spans[next]);
    if (top < 80) scrollBy(0, top - 80);
    else if (bottom > innerHeight) scrollBy(0, bottom - innerHeight + 20);
    this.render();
    [...this.shown.values()].find((shown) => shown.place === next)?.element.querySelector(".open")?.focus({ preventScroll: true });
  }

  // Skeletons while a list is on its way.
  wait() {
    this.show({ length: 12, at: () => undefined, need: () => {} });
    this.grid.setAttribute("aria-busy", "true");
  }

  ready() { this.grid.removeAttribute("aria-busy"); }
}

// A masonry within a section of its own.
export function section(parent, label, options) {
  const grid = make("ul", { class: "grid", "aria-label": label });
  parent.append(grid);
  return new Masonry(grid, options);
}
