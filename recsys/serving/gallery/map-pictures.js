// Pictures of the map: thumbnails over the points where there is space for them, none over another.
import { pictureOf } from "./api.js";
import { SIDE } from "./map-data.js";
import { make } from "./tiles.js";

const MOST_SEEN = 1500; // items in view up to which pictures are shown
const MOST_SHOWN = 200;
const GAP = 1.08;

export class Pictures {
  constructor(place, cards) {
    Object.assign(this, { place, cards, shown: new Map(), level: null, size: 0, anchor: null });
  }

  clear() {
    for (const { element } of this.shown.values()) element.remove();
    this.shown.clear();
    [this.level, this.anchor] = [null, null];
  }

  // Move with the camera; `arrange` chooses anew.
  follow(camera) {
    if (!this.anchor) return;
    const ratio = camera.scale / this.anchor.scale;
    const [left, top] = camera.toScreen(this.anchor.x, this.anchor.y);
    this.place.style.transform = `translate(${left}px, ${top}px) scale(${ratio})`;
  }

  // Choose the pictures of what is seen. `colourOf(item)`: of the frame, as CSS has it.
  arrange(camera, places, colourOf) {
    const { clientWidth: width, clientHeight: height } = camera.canvas;
    const [left, top] = camera.toMap(-80, -80);
    const [right, bottom] = camera.toMap(width + 80, height + 80);
    const view = { left: left * SIDE, top: top * SIDE, right: right * SIDE, bottom: bottom * SIDE };
    const seen = places.within(view, MOST_SEEN);
    if (!seen?.length) return this.clear();
    const level = Math.floor(2 * Math.log2(camera.scale)) / 2;
    if (level !== this.level) {
      const free = Math.sqrt(width * height / seen.length);
      this.size = [150, 104, 76].find((size) => size < free * 0.8) ?? (width < 700 ? 50 : 58);
      this.level = level;
    }
    this.anchor = { x: camera.x, y: camera.y, scale: camera.scale };
    const chosen = this.chosen(seen, places, this.size * GAP / 2 ** level * SIDE);
    for (const [item, { element }] of this.shown) {
      if (!chosen.has(item)) {
        element.remove();
        this.shown.delete(item);
      }
    }
    for (const item of chosen) this.put(item, camera, places, colourOf);
    this.follow(camera);
    this.fill([...chosen]);
  }

  // Items no two of which are nearer than `distance` in both directions; those shown already go first.
  chosen(seen, places, distance) {
    const cells = new Map();
    const found = new Set();
    const key = (column, row) => column * 100003 + row;
    for (const item of [...seen.filter((one) => this.shown.has(one)), ...seen.filter((one) => !this.shown.has(one))]) {
      const [x, y] = [places.points[2 * item], places.points[2 * item + 1]];
      const [column, row] = [Math.floor(x / distance), Math.floor(y / distance)];
      const isFree = [-1, 0, 1].every((across) => [-1, 0, 1].every((down) => {
        const other = cells.get(key(column + across, row + down));
        return !other || Math.abs(other[0] - x) >= distance || Math.abs(other[1] - y) >= distance;
      }));
      if (!isFree) continue;
      cells.set(key(column, row), [x, y]);
      found.add(item);
      if (found.size === MOST_SHOWN) break;
    }
    return found;
  }

  put(item, camera, places, colourOf) {
    if (!this.shown.has(item)) {
      const element = make("img", { alt: "", decoding: "async", draggable: "false" });
      element.addEventListener("load", () => element.classList.add("loaded"));
      this.place.append(element);
      this.shown.set(item, { element });
    }
    const shown = this.shown.get(item);
    const { style } = shown.element;
    [shown.x, shown.y] = [places.points[2 * item] / SIDE, places.points[2 * item + 1] / SIDE];
    style.width = style.height = `${this.size}px`;
    style.left = `${(shown.x - this.anchor.x) * camera.scale - this.size / 2}px`;
    style.top = `${(shown.y - this.anchor.y) * camera.scale - this.size / 2}px`;
    style.borderColor = colourOf(item);
  }

  async fill(items) {
    const cards = await this.cards.of(items);
    items.forEach((item, place) => {
      const element = this.shown.get(item)?.element;
      if (element && !element.hasAttribute("src")) element.src = pictureOf(cards[place].id);
    });
  }

  // The item whose picture covers a place of the canvas; -1: none.
  at(camera, left, top) {
    if (!this.anchor) return -1;
    const half = this.size / 2 * camera.scale / this.anchor.scale;
    for (const [item, { x, y }] of this.shown) {
      const [centre, middle] = camera.toScreen(x, y);
      if (Math.abs(centre - left) <= half && Math.abs(middle - top) <= half) return item;
    }
    return -1;
  }
}
