// Points of the map, drawn by WebGL in one call; by the main processor where there is no graphics processor:
// software that stands in for one takes eight times as long (60 against 7 ms of a core for 100,000 points).
//
// A renderer has `setColours(colours, order)` (RGBA and rows, the last ones on top), `setLayouts(from, to)`
// and `draw(view)`. `view`: {x, y, scale} of the middle in units of 0 to 1 and pixels a unit; `share` of the
// way between the layouts; `size` of a point in pixels; `paper`, the colour behind.

import { make } from "./tiles.js";

const BORDER = 0.06; // of a disc's size: paper around it, which keeps points apart
const VERTEX = `#version 300 es
layout(location = 0) in vec2 from;
layout(location = 1) in vec2 to;
layout(location = 2) in vec4 colour;
uniform vec2 middle, unit;
uniform float share, size;
flat out vec4 tint;
void main() {
  bool starts = from.x < 1.0, ends = to.x < 1.0;
  vec2 place = mix(starts ? from : to, ends ? to : from, share);
  float there = starts == ends ? float(ends) : ends ? share : 1.0 - share;
  gl_Position = vec4((place - middle) * unit, 0.0, 1.0);
  gl_PointSize = size * there;
  tint = colour;
  if (there < 0.05) gl_Position.x = 9.0;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
flat in vec4 tint;
uniform float size;
uniform bool round;
uniform vec3 paper;
out vec4 shown;
void main() {
  float alpha = 1.0, fill = 1.0;
  if (round) {
    float edge = size * (0.5 - length(gl_PointCoord - 0.5));
    if (edge <= 0.0) discard;
    alpha = min(1.0, edge);
    fill = clamp(edge - ${BORDER} * size, 0.0, 1.0);
  }
  shown = vec4(mix(paper, tint.rgb, fill) * alpha, alpha);
}`;
const FREE = 65535; // both coordinates of an item without a point
const ROUND = 4; // pixels from which a point is a disc

// `isForced`: WebGL even where the browser stands in for a graphics processor.
export function makePoints(canvas, isForced) {
  const options = { alpha: false, antialias: false, depth: false, stencil: false };
  const gl = isForced || hasGraphicsProcessor() ? canvas.getContext("webgl2", options) : null;
  return gl ? new DrawnByWebGL(canvas, gl)
    : new DrawnByProcessor(canvas, canvas.getContext("2d", { alpha: false }));
}

function hasGraphicsProcessor() {
  const gl = make("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  const about = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = about ? gl.getParameter(about.UNMASKED_RENDERER_WEBGL) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return gl !== null && !/swiftshader|llvmpipe|software|basic render/i.test(name);
}

class DrawnByWebGL {
  constructor(canvas, gl) {
    Object.assign(this, { canvas, gl, isAccelerated: true, buffers: new Map(), count: 0 });
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`The map cannot be drawn: ${gl.getProgramInfoLog(program)}`);
    gl.useProgram(program);
    this.places = Object.fromEntries(["middle", "unit", "share", "size", "round", "paper"].map((name) => [name, gl.getUniformLocation(program, name)]));
    for (const place of [0, 1, 2]) gl.enableVertexAttribArray(place);
    this.colours = gl.createBuffer();
    this.order = gl.createBuffer();
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  setColours(colours, order) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.colours);
    gl.bufferData(gl.ARRAY_BUFFER, colours, gl.DYNAMIC_DRAW);
    gl.vertexAttribPointer(2, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.order);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    this.count = order.length;
  }

  setLayouts(...layouts) {
    const { gl } = this;
    layouts.forEach((points, place) => {
      const isNew = !this.buffers.has(points);
      if (isNew) this.buffers.set(points, gl.createBuffer());
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.get(points));
      if (isNew) gl.bufferData(gl.ARRAY_BUFFER, points, gl.STATIC_DRAW);
      gl.vertexAttribPointer(place, 2, gl.UNSIGNED_SHORT, true, 0, 0);
    });
  }

  draw({ x, y, scale, share, size, paper }) {
    const { gl, canvas: { width, height }, places } = this;
    const isRound = size >= ROUND;
    gl.viewport(0, 0, width, height);
    const ground = paper.map((part) => part / 255);
    gl.clearColor(...ground, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (isRound) gl.enable(gl.BLEND);
    else gl.disable(gl.BLEND);
    gl.uniform2f(places.middle, x, y);
    gl.uniform2f(places.unit, 2 * scale / width, -2 * scale / height);
    gl.uniform1f(places.share, share);
    gl.uniform1f(places.size, size);
    gl.uniform1i(places.round, isRound);
    gl.uniform3fv(places.paper, ground);
    gl.drawElements(gl.POINTS, this.count, gl.UNSIGNED_INT, 0);
  }
}

class DrawnByProcessor {
  constructor(canvas, context) {
    Object.assign(this, { canvas, context, isAccelerated: false, order: [], image: null });
  }

  setColours(colours, order) {
    this.order = order;
    this.colours = new Uint32Array(colours.buffer, colours.byteOffset, colours.length / 4);
  }

  setLayouts(from, to) {
    Object.assign(this, { from, to });
  }

  draw({ x, y, scale, share, size, paper }) {
    const { canvas: { width, height }, from, to, colours } = this;
    if (this.image?.width !== width || this.image.height !== height) {
      this.image = this.context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const { pixels } = this;
    const ground = (0xff000000 | paper[2] << 16 | paper[1] << 8 | paper[0]) >>> 0;
    pixels.fill(ground);
    const { inner, edge } = discOf(size, width);
    const border = Math.ceil(size / 2) + 1;
    const [left, top, unit] = [width / 2 - x * scale, height / 2 - y * scale, scale / FREE];
    for (const item of this.order) {
      let [ax, ay, bx, by] = [from[2 * item], from[2 * item + 1], to[2 * item], to[2 * item + 1]];
      if (bx === FREE && (ax === FREE || share === 1)) continue;
      if (ax === FREE) [ax, ay] = [bx, by];
      if (bx === FREE) [bx, by] = [ax, ay];
      const column = Math.round(left + unit * (ax + (bx - ax) * share));
      const row = Math.round(top + unit * (ay + (by - ay) * share));
      if (column < border || row < border || column >= width - border || row >= height - border) continue;
      const place = row * width + column;
      const colour = colours[item];
      for (const offset of inner) pixels[place + offset] = colour;
      for (const [offset, part, fill] of edge) {
        pixels[place + offset] = mixed(pixels[place + offset], mixed(ground, colour, fill), part);
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }
}

// Offsets of the pixels of a disc from that of its middle: `inner` ones, and those of the `edge` with the
// parts, of 256, that the disc covers of each, and its colour of that; the rest is paper. Small discs are squares.
function discOf(size, width) {
  const found = { inner: [], edge: [] };
  const radius = size / 2;
  const end = Math.ceil(radius);
  for (let row = -end; row <= end; row++) {
    for (let column = -end; column <= end; column++) {
      const depth = radius + 0.5 - Math.hypot(row, column);
      const offset = row * width + column;
      if (size < ROUND) {
        if (Math.max(Math.abs(column + 0.5), Math.abs(row + 0.5)) <= radius) found.inner.push(offset);
      } else if (depth >= 1 + BORDER * size) {
        found.inner.push(offset);
      } else if (depth > 0) {
        const [part, fill] = [depth, depth - BORDER * size].map((share) => Math.round(256 * Math.min(1, Math.max(0, share))));
        found.edge.push([offset, part, fill]);
      }
    }
  }
  return found;
}

// A colour over another, `part` of 256 of it.
function mixed(below, above, part) {
  const blend = (mask) => ((below & mask) * (256 - part) + (above & mask) * part) / 256 & mask;
  return (0xff000000 | blend(0xff0000) | blend(0xff00) | blend(0xff)) >>> 0;
}
