// Person of the map: whose taste it shows, and what she does with a picture that she opens.
import { galleryAddress } from "./address.js";
import { get } from "./api.js";
import { openPicture } from "./dialog.js";
import { newId, note, sendEvent } from "./events.js";

export class Person {
  // `on`: {changed(), failed(error)}.
  constructor(on) {
    Object.assign(this, { on, id: null, likes: [], hidden: new Set() });
  }

  become(id) {
    Object.assign(this, { id, likes: [], hidden: new Set() });
  }

  async becomeAnybody() {
    const { users } = await get("/v1/users?order=chance&limit=1");
    if (!users.length) throw new Error("This bundle has no people whose taste could be shown.");
    this.become(users[0].id);
  }

  // Read what she likes and what she has hidden.
  async read() {
    const { id } = this;
    const { likes, hidden } = await get(`/v1/users/${encodeURIComponent(id)}`);
    if (id === this.id) Object.assign(this, { likes, hidden: new Set(hidden) });
  }

  open(item) {
    if (this.id) note({ user: this.id, item: item.id, kind: "opened" });
    const who = {
      user: this.id, dials: {},
      isLiked: ({ id }) => this.likes.some((liked) => liked.id === id),
      isHidden: ({ id }) => this.hidden.has(id),
    };
    return openPicture(item, who, {
      like: (liked, button) => this.like(liked, button),
      hide: (hidden) => this.send(hidden, "hidden"),
      open: (other) => this.open(other),
      filterAddress: (filter) => galleryAddress({ ...(this.id ? { person: this.id } : {}), ...filter }),
    });
  }

  async like(item, button) {
    button.disabled = true;
    if (await this.send(item, "liked")) button.setAttribute("aria-pressed", "true");
    button.disabled = false;
  }

  // Store an event; one who is nobody yet becomes a new visitor. Returns whether it is stored.
  async send(item, kind) {
    if (!this.id) this.become(`visitor-${newId()}`);
    try {
      await sendEvent(this.id, item.id, kind);
    } catch (error) {
      this.on.failed(error);
      return false;
    }
    if (kind === "liked") this.likes.unshift(item);
    else this.hidden.add(item.id);
    this.on.changed();
    return true;
  }
}
