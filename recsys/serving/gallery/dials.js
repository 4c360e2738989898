// Dials: weights of content, style and words, a preference for new artists, and variety.
import { make, MODALITIES, percent } from "./tiles.js";

const SCALED = ["semantic", "style", "text"];
const LEAST_SHARE = 0.02; // of a modality that hardly counts: its dial still moves something

// Dials at a person's own weights; `onmove()` is called when one moves.
export function makeDials(place, weights, onmove) {
  const own = {};
  for (const name of SCALED.filter((name) => name in weights)) own[name] = Math.max(weights[name], LEAST_SHARE);
  const start = { ...own, artists: 0, variety: 0 };
  const value = { ...start };
  const inputs = {};
  const show = (name) => {
    inputs[name].value = Math.round(100 * value[name]);
    const share = value[name] === own[name] ? weights[name] : value[name];
    inputs[name].closest("label").querySelector("output").textContent = percent(share);
  };
  const dial = (name, label) => {
    inputs[name] = make("input", { type: "range", min: 0, max: 100, step: 1, name, oninput: (event) => {
      value[name] = event.target.value / 100;
      show(name);
      onmove();
    } });
    return make("label", { class: name }, make("span", {}, label, make("output")), inputs[name]);
  };
  const reset = make("button", { type: "button", onclick: () => {
    Object.assign(value, start);
    Object.keys(value).forEach(show);
    onmove();
  } }, "Own weights");
  place.replaceChildren(...Object.keys(own).map((name) => dial(name, MODALITIES[name])),
    dial("artists", "new artists"), dial("variety", "variety"), reset);
  Object.keys(value).forEach(show);
  place.hidden = false;
  return {
    factors: () => Object.fromEntries(Object.keys(own).map((name) => [name, Math.min(10, value[name] / own[name])])
      .filter(([, factor]) => Math.abs(factor - 1) > 1e-6)),
    variety: () => value.variety,
    wantsNew: () => value.artists > 0,
    // Move up items of artists whom the person has not liked: at 100 % all of them come first.
    order: (items, artists) => value.artists === 0 ? items
      : items.map((item, place) => [place - (item.artist && !artists.has(item.artist) ? items.length * value.artists : 0), item])
        .sort((a, b) => a[0] - b[0]).map(([, item]) => item),
  };
}

// Mean weights of a list's items by modality.
export function meanWeights(items) {
  const sums = {};
  for (const item of items) {
    for (const [name, weight] of Object.entries(item.weights)) sums[name] = (sums[name] ?? 0) + weight / items.length;
  }
  return sums;
}
