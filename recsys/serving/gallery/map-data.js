// Data of the map: points found by their place, and cards of items.

const FREE = 65535; // both coordinates of an item without a point
export const SIDE = 65534; // the greatest coordinate

// Points of one layout, sorted into square cells. `points`: Uint16Array of x, y by item.
export class Places {
  constructor(points) {
    this.points = points;
    this.count = points.length / 2;
    this.side = Math.max(1, Math.min(1024, Math.round(Math.sqrt(this.count / 2))));
    const starts = new Uint32Array(this.side ** 2 + 1);
    const cells = new Uint32Array(this.count);
    this.present = 0;
    for (let item = 0; item < this.count; item++) {
      if (points[2 * item] === FREE) {
        cells[item] = FREE ** 2;
        continue;
      }
      cells[item] = this.cell(points[2 * item]) + this.side * this.cell(points[2 * item + 1]);
      starts[cells[item] + 1]++;
      this.present++;
    }
    for (let cell = 0; cell < this.side ** 2; cell++) starts[cell + 1] += starts[cell];
    this.starts = starts;
    this.items = new Uint32Array(this.present);
    const next = starts.slice();
    for (let item = 0; item < this.count; item++) {
      if (points[2 * item] !== FREE) this.items[next[cells[item]]++] = item;
    }
  }

  cell(coordinate) {
    return Math.max(0, Math.min(this.side - 1, Math.floor(coordinate * this.side / (SIDE + 1))));
  }

  has(item) {
    return this.points[2 * item] !== FREE;
  }

  // Items within a rectangle, in the order of their rows; null: more than `most`.
  within({ left, top, right, bottom }, most) {
    const found = [];
    for (let row = this.cell(top); row <= this.cell(bottom); row++) {
      const first = this.starts[row * this.side + this.cell(left)];
      const last = this.starts[row * this.side + this.cell(right) + 1];
      for (let place = first; place < last; place++) {
        const item = this.items[place];
        const [x, y] = [this.points[2 * item], this.points[2 * item + 1]];
        if (x >= left && x <= right && y >= top && y <= bottom) found.push(item);
      }
      if (found.length > most) return null;
    }
    return found.sort((a, b) => a - b);
  }

  // The item nearest to a point, no farther than `radius`; -1: none.
  nearest(x, y, radius) {
    let [best, least] = [-1, radius ** 2];
    for (let row = this.cell(y - radius); row <= this.cell(y + radius); row++) {
      const first = this.starts[row * this.side + this.cell(x - radius)];
      const last = this.starts[row * this.side + this.cell(x + radius) + 1];
      for (let place = first; place < last; place++) {
        const item = this.items[place];
        const distance = (this.points[2 * item] - x) ** 2 + (this.points[2 * item + 1] - y) ** 2;
        if (distance <= least) [best, least] = [item, distance];
      }
    }
    return best;
  }
}

// Titles, artists and pictures of items, asked for once each. An item is a place in the arrays, row - 1.
export class Cards {
  constructor(version, get) {
    Object.assign(this, { version, get, found: new Map() });
  }

  known(item) {
    const card = this.found.get(item);
    return card instanceof Promise ? null : card;
  }

  // Cards of items, 200 at most, in their order.
  async of(items) {
    const lacking = items.filter((item) => !this.found.has(item));
    if (lacking.length) {
      const rows = lacking.map((item) => item + 1).join();
      const answer = this.get(`/v1/map/${encodeURIComponent(this.version)}/items?rows=${rows}`);
      lacking.forEach((item, place) => this.found.set(item, answer.then((found) => {
        this.found.set(item, found.items[place]);
        return found.items[place];
      }, (error) => {
        this.found.delete(item);
        throw error;
      })));
    }
    return Promise.all(items.map((item) => this.found.get(item)));
  }
}
