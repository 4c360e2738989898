// Camera of the map: which part is seen, moved by mouse, wheel, touch and keys.

const LEAST = 0.6; // of the scale at which everything is seen
const MOST = 400;
const STEP = 1.5; // of a zoom by a key or a button
const GLIDE = 220; // milliseconds
const STILL = 5; // pixels that a click may move

export const wantsStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// `on`: {moved(), hover(x, y), left(), tap(x, y), enter()}; places are pixels of the canvas's style.
export class Camera {
  constructor(canvas, on) {
    Object.assign(this, { canvas, on, x: 0.5, y: 0.5, zoom: 1, glide: null, insets: { left: 0, top: 0, right: 0, bottom: 0 } });
    this.pointers = new Map();
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave"]) {
      canvas.addEventListener(kind, (event) => this[kind](event));
    }
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  // Pixels a unit.
  get scale() {
    return this.zoom * this.whole;
  }

  // The scale at which everything is seen beside the panels.
  get whole() {
    const { left, right, top, bottom } = this.insets;
    const [width, height] = [this.canvas.clientWidth - left - right, this.canvas.clientHeight - top - bottom];
    return 0.94 * Math.max(120, Math.min(width, height));
  }

  get home() {
    const { left, right, top, bottom } = this.insets;
    return { x: 0.5 + (right - left) / 2 / this.whole, y: 0.5 + (bottom - top) / 2 / this.whole, zoom: 1 };
  }

  fit(isSudden = false) {
    this.to(this.home, isSudden);
  }

  to(aim, isSudden = false) {
    if (isSudden || wantsStill()) {
      this.glide = null;
      Object.assign(this, aim);
    } else {
      const { x, y, zoom } = this;
      this.glide = { from: { x, y, zoom }, to: { x, y, zoom, ...aim }, start: performance.now() };
    }
    this.on.moved();
  }

  // Advance a glide to a time; true while it lasts.
  advance(now) {
    if (!this.glide) return false;
    const { from, to, start } = this.glide;
    const share = Math.min(1, Math.max(0, now - start) / GLIDE);
    const eased = 1 - (1 - share) ** 3;
    this.zoom = from.zoom * (to.zoom / from.zoom) ** eased;
    // The middle moves with the scale, so that the point under the pointer stays.
    const part = from.zoom === to.zoom ? eased : (1 / from.zoom - 1 / this.zoom) / (1 / from.zoom - 1 / to.zoom);
    this.x = from.x + (to.x - from.x) * part;
    this.y = from.y + (to.y - from.y) * part;
    if (share === 1) this.glide = null;
    return share < 1;
  }

  toScreen(x, y) {
    return [(x - this.x) * this.scale + this.canvas.clientWidth / 2, (y - this.y) * this.scale + this.canvas.clientHeight / 2];
  }

  toMap(left, top) {
    return [(left - this.canvas.clientWidth / 2) / this.scale + this.x, (top - this.canvas.clientHeight / 2) / this.scale + this.y];
  }

  bounded(zoom) {
    return Math.min(MOST, Math.max(LEAST, zoom));
  }

  // Zoom by a factor about a place of the canvas.
  zoomAt(factor, left, top, isSudden = true) {
    const [x, y] = this.toMap(left, top);
    const zoom = this.bounded((isSudden ? this.zoom : this.glide?.to.zoom ?? this.zoom) * factor);
    const ratio = this.zoom / zoom;
    this.to({ x: x + (this.x - x) * ratio, y: y + (this.y - y) * ratio, zoom }, isSudden);
  }

  step(direction) {
    this.zoomAt(STEP ** direction, this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, false);
  }

  pan(across, down, isSudden = true) {
    const { x, y } = isSudden ? this : this.glide?.to ?? this;
    const bound = (value) => Math.min(1.2, Math.max(-0.2, value));
    this.to({ x: bound(x + across / this.scale), y: bound(y + down / this.scale) }, isSudden);
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoomAt(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), event.offsetX, event.offsetY);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const part = Math.min(this.canvas.clientWidth, this.canvas.clientHeight) / 6;
    const action = {
      ArrowLeft: () => this.pan(-part, 0, false),
      ArrowRight: () => this.pan(part, 0, false),
      ArrowUp: () => this.pan(0, -part, false),
      ArrowDown: () => this.pan(0, part, false),
      "+": () => this.step(1),
      "=": () => this.step(1),
      "-": () => this.step(-1),
      0: () => this.fit(),
      Home: () => this.fit(),
      Enter: () => this.on.enter(),
      " ": () => this.on.enter(),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  pointerdown(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    this.travelled = this.pointers.size > 1 ? Infinity : 0;
    this.glide = null;
    if (event.pointerType !== "mouse") this.on.left();
  }

  pointermove(event) {
    const before = this.pointers.get(event.pointerId);
    const now = { x: event.offsetX, y: event.offsetY };
    if (!before) {
      if (event.pointerType === "mouse") this.on.hover(now.x, now.y);
      return;
    }
    const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    this.pointers.set(event.pointerId, now);
    this.travelled += Math.hypot(now.x - before.x, now.y - before.y);
    if (this.travelled < STILL) return;
    this.canvas.classList.add("dragged");
    if (other) {
      const distance = (place) => Math.max(1, Math.hypot(place.x - other.x, place.y - other.y));
      this.pan((before.x - now.x) / 2, (before.y - now.y) / 2);
      this.zoomAt(distance(now) / distance(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
    } else {
      this.pan(before.x - now.x, before.y - now.y);
    }
  }

  pointerup(event) {
    const wasDown = this.pointers.delete(event.pointerId);
    this.canvas.classList.remove("dragged");
    if (wasDown && this.travelled < STILL) this.on.tap(event.offsetX, event.offsetY);
  }

  pointercancel(event) {
    this.pointers.delete(event.pointerId);
    this.canvas.classList.remove("dragged");
  }

  pointerleave() {
    this.on.left();
  }
}
