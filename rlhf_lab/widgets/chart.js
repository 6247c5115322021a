// Draws a Picture (rlhf_lab/figures/picture.py) as SVG. It knows no mathematics: every number comes from Python.
//
// All lengths are in em of the chart's own font, so one CSS rule makes the whole chart fit a phone or a
// projector. Colours come as a light and a dark value; chart.css picks one by the page's theme.
//
// Two doors: the default export is an anywidget view; `mount` is for a page without a kernel.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function html(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const drawable = (...values) => values.every((v) => v !== null && v !== undefined && Number.isFinite(v));

// --- scales and ticks ---------------------------------------------------------------------------------------

function scale(axis, from, to) {
  const f = axis.log ? Math.log10 : (v) => v;
  const low = f(axis.low);
  const span = f(axis.high) - low;
  return (value) => from + ((f(value) - low) / span) * (to - from);
}

function linearTicks(low, high, about) {
  const rough = (high - low) / Math.max(about, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    ticks.push([i * step, (i * step + 0).toFixed(digits).replace("-", "−")]);
  }
  // A single number shows no scale.
  return ticks.length > 1 || about > 32 ? ticks : linearTicks(low, high, 2 * Math.max(about, 1));
}

const UP = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

function logTicks(low, high, about) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(about, 1)));
  const ticks = [];
  for (let k = first; k <= last; k += every) {
    const name = k >= -2 && k <= 3 ? String(Number(`1e${k}`)) : "10" + [...String(k)].map((c) => UP[c]).join("");
    ticks.push([10 ** k, name]);
  }
  return ticks.length > 1 ? ticks : linearTicks(low, high, about).filter(([v]) => v > 0);
}

const ticksOf = (axis, about) => (axis.log ? logTicks : linearTicks)(axis.low, axis.high, about);

// --- text ---------------------------------------------------------------------------------------------------

const WIDE = 0.56; // a character's mean width in em

// The width of a text in characters, of which a Chinese one takes 1 em.
const wide = (text) => [...text].reduce((sum, letter) => sum + (letter >= "\u2e80" ? 1 / WIDE : 1), 0);

// What stays on one line: a value ("r = 1"), a pair ("1 | 2"), a unit in brackets, a Chinese character with its
// punctuation, a word, spaces.
const PIECES = /\S [=|] \S{1,5}|\[[^\]\s]{1,8}\]|[（“《([]*[\u2e80-\uffef][，。、：；？！）”》)\]]*|[^\s\u2e80-\uffef]+|\s+/gu;

function wrap(name, room, lines = 3) {
  // Lines of at most `room` characters, or of two Chinese ones; what does not fit ends in "…". The tooltip has it all.
  const out = [];
  for (const part of name.split("\n")) {
    let line = "";
    for (const piece of part.match(PIECES) ?? []) {
      if (line.trim() && wide(line) + wide(piece.trimEnd()) > room + (room < 4 ? 0.6 : 0)) {
        out.push(line.trimEnd());
        line = piece.trimStart();
      } else line += piece;
    }
    out.push(line.trimEnd());
  }
  return out.slice(0, lines).map((line) => {
    if (wide(line) <= Math.max(room + 2, 5)) return line;
    const letters = [...line];
    while (letters.length > 1 && wide(letters.join("")) > room - 1) letters.pop();
    return `${letters.join("")}…`;
  });
}

// --- marks --------------------------------------------------------------------------------------------------

const DASHES = { "-": null, "--": "0.6 0.4", "-.": "0.7 0.3 0.15 0.3", ":": "0.15 0.3" };

function dashArray(dash, em) {
  const pattern = DASHES[dash];
  return pattern ? pattern.split(" ").map((v) => v * em).join(" ") : null;
}

function ring(n, r, turn, inner = null) {
  const points = [];
  const steps = inner === null ? n : 2 * n;
  for (let i = 0; i < steps; i++) {
    const radius = inner !== null && i % 2 ? inner : r;
    const a = turn - Math.PI / 2 + (2 * Math.PI * i) / steps;
    points.push(`${(radius * Math.cos(a)).toFixed(2)},${(radius * Math.sin(a)).toFixed(2)}`);
  }
  return `M${points.join("L")}Z`;
}

function cross(r, turn, closed) {
  if (!closed) {
    const d = r * Math.SQRT1_2;
    return turn ? `M${-d},${-d}L${d},${d}M${-d},${d}L${d},${-d}` : `M${-r},0L${r},0M0,${-r}L0,${r}`;
  }
  const t = r / 3;
  const corners = [[-t, -r], [t, -r], [t, -t], [r, -t], [r, t], [t, t], [t, r], [-t, r], [-t, t], [-r, t], [-r, -t], [-t, -t]];
  const [c, s] = [Math.cos(turn), Math.sin(turn)];
  return `M${corners.map(([x, y]) => `${(x * c - y * s).toFixed(2)},${(x * s + y * c).toFixed(2)}`).join("L")}Z`;
}

// The shapes of matplotlib's markers, by matplotlib's letters. Open ones are stroked, the others filled.
const MARKERS = {
  o: (r) => `M${-r},0A${r},${r} 0 1 0 ${r},0A${r},${r} 0 1 0 ${-r},0Z`,
  "*": (r) => ring(5, r * 1.35, 0, r * 0.55),
  s: (r) => ring(4, r * 1.2, Math.PI / 4),
  D: (r) => ring(4, r * 1.2, 0),
  d: (r) => `M0,${-r * 1.3}L${r * 0.75},0L0,${r * 1.3}L${-r * 0.75},0Z`,
  "^": (r) => ring(3, r * 1.2, 0),
  v: (r) => ring(3, r * 1.2, Math.PI),
  "<": (r) => ring(3, r * 1.2, -Math.PI / 2),
  ">": (r) => ring(3, r * 1.2, Math.PI / 2),
  p: (r) => ring(5, r * 1.1, 0),
  h: (r) => ring(6, r * 1.1, 0),
  H: (r) => ring(6, r * 1.1, Math.PI / 6),
  8: (r) => ring(8, r * 1.1, Math.PI / 8),
  P: (r) => cross(r * 1.1, 0, true),
  X: (r) => cross(r * 1.1, Math.PI / 4, true),
  x: (r) => cross(r, 1, false),
  "+": (r) => cross(r, 0, false),
  _: (r) => `M${-r},0L${r},0`,
  1: (r) => `M0,0L0,${r}M0,0L${-r * 0.9},${-r / 2}M0,0L${r * 0.9},${-r / 2}`,
  2: (r) => `M0,0L0,${-r}M0,0L${-r * 0.9},${r / 2}M0,0L${r * 0.9},${r / 2}`,
  3: (r) => `M0,0L${-r},0M0,0L${r / 2},${-r * 0.9}M0,0L${r / 2},${r * 0.9}`,
  4: (r) => `M0,0L${r},0M0,0L${-r / 2},${-r * 0.9}M0,0L${-r / 2},${r * 0.9}`,
};
const OPEN = new Set(["x", "+", "_", "1", "2", "3", "4"]);

const inks = (look) => `--light:${look.light};--dark:${look.dark}`;

function mark(look, x, y, r, tip) {
  const letter = look.marker in MARKERS ? look.marker : "o";
  const node = make("path", {
    d: MARKERS[letter](r),
    transform: `translate(${x.toFixed(2)},${y.toFixed(2)})`,
    class: OPEN.has(letter) ? "ink stroke thick" : "ink fill edge",
    style: inks(look),
  });
  if (tip) node.append(make("title", {}, tip));
  return node;
}

const DRAW = {
  bars(layer, look, to, em, place) {
    const slot = to.x(1) - to.x(0);
    const width = (0.8 * slot) / place.of;
    return layer.height.flatMap((value, i) => {
      if (!drawable(value)) return [];
      const [top, floor] = [to.y(value), to.y(Math.max(0, to.axes.y.low))];
      const bar = make("rect", {
        x: (to.x(i) - 0.4 * slot + place.index * width + 0.04 * width).toFixed(2),
        y: Math.min(top, floor).toFixed(2),
        width: (width * 0.92).toFixed(2),
        height: Math.abs(floor - top).toFixed(2),
        class: "ink fill",
        style: inks(look),
      });
      bar.append(make("title", {}, `${layer.label}: ${value}`));
      return [bar];
    });
  },

  curve(layer, look, to, em) {
    let path = "";
    let pen = "M";
    layer.x.forEach((x, i) => {
      if (!drawable(x, layer.y[i]) || (to.axes.x.log && x <= 0) || (to.axes.y.log && layer.y[i] <= 0)) {
        pen = "M";
        return;
      }
      path += `${pen}${to.x(x).toFixed(2)},${to.y(layer.y[i]).toFixed(2)}`;
      pen = "L";
    });
    const dash = dashArray(layer.dash ?? look.dash, em);
    return [make("path", { d: path, class: "ink stroke line", style: inks(look), "stroke-dasharray": dash })];
  },

  band(layer, look, to) {
    const kept = layer.x.map((_, i) => i).filter((i) => drawable(layer.x[i], layer.low[i], layer.high[i]));
    if (kept.length < 2) return [];
    const point = (i, side) => `${to.x(layer.x[i]).toFixed(2)},${to.y(layer[side][i]).toFixed(2)}`;
    const there = kept.map((i) => point(i, "high"));
    const back = kept.reverse().map((i) => point(i, "low"));
    return [make("path", { d: `M${[...there, ...back].join("L")}Z`, class: "ink fill faint", style: inks(look) })];
  },

  points(layer, look, to, em) {
    return layer.x.flatMap((x, i) => {
      const y = layer.y[i];
      if (!drawable(x, y)) return [];
      const nodes = [];
      if (layer.low && drawable(layer.low[i], layer.high[i])) {
        const d = `M${to.x(x)},${to.y(layer.low[i])}L${to.x(x)},${to.y(layer.high[i])}`;
        nodes.push(make("path", { d, class: "ink stroke line", style: inks(look) }));
      }
      nodes.push(mark(look, to.x(x), to.y(y), em * (layer.big ? 0.7 : 0.38), `${layer.label}: ${x}, ${y}`));
      return nodes;
    });
  },

  rule(layer, look, to, em) {
    if (!drawable(layer.at)) return [];
    const [box, across] = [to.box, layer.axis === "x"];
    const at = across ? to.x(layer.at) : to.y(layer.at);
    const d = across ? `M${at},${box.top}L${at},${box.bottom}` : `M${box.left},${at}L${box.right},${at}`;
    const line = make("path", {
      d, class: "ink stroke line", style: inks(look), "stroke-dasharray": dashArray(layer.dash, em),
    });
    return [line];
  },
};

function sample(layer, look, x, y, em) {
  // The legend's key: the same bar, line or marker as in the data.
  if (layer.kind === "bars" || layer.kind === "band") {
    const type = layer.kind === "band" ? "ink fill faint" : "ink fill";
    return make("rect", { x, y: y - 0.4 * em, width: 1.1 * em, height: 0.8 * em, class: type, style: inks(look) });
  }
  if (layer.kind === "points") return mark(look, x + 0.55 * em, y, 0.42 * em, "");
  return make("path", {
    d: `M${x},${y}L${x + 1.3 * em},${y}`, class: "ink stroke line", style: inks(look),
    "stroke-dasharray": dashArray(layer.dash ?? look.dash, em),
  });
}

// --- one panel ----------------------------------------------------------------------------------------------

function drawPanel(panel, palette, left, top, width, height, em, id) {
  const group = make("g", { class: "panel" });
  const say = (words, x, y, extra = {}) => group.append(make("text", { x, y, ...extra }, words));
  const titleLines = wrap(panel.title, Math.floor(width / (0.6 * em)), 2);
  titleLines.forEach((line, i) => say(line, left, top + em * (1 + 1.2 * i), { class: "head" }));

  // The legend stands between title and data, in as many rows as it needs, and never covers a thing.
  let y = top + em * (1.2 * titleLines.length + 0.9);
  const entries = panel.layers.filter((layer) => layer.label);
  if (entries.length > 1) {
    let x = left;
    for (const layer of entries) {
      const needs = (1.7 + wide(layer.label) * WIDE) * em;
      if (x > left && x + needs > left + width) {
        x = left;
        y += 1.4 * em;
      }
      group.append(sample(layer, palette[layer.style], x, y - 0.02 * em, em));
      say(layer.label, x + 1.5 * em, y + 0.33 * em);
      x += needs + 0.9 * em;
    }
    y += 1.4 * em;
  }

  const yTicks = ticksOf(panel.y, Math.floor(height / (4 * em)));
  const tickRoom = Math.max(...yTicks.map(([, name]) => name.length), 1) * WIDE * em;
  // A y label longer than the axis takes up to three lines.
  const sideLines = wrap(panel.y.label, Math.floor((height - 9 * em) / (WIDE * em)), 3);
  const box = { left: left + tickRoom + (1.2 + 1.3 * sideLines.length) * em, right: left + width - 0.6 * em, top: y };
  const slot = (box.right - box.left) / Math.max(panel.x.names.length, 1);
  const names = panel.x.names.map((name) => wrap(name, Math.floor(slot / (1.08 * WIDE * em)), 4));
  const nameLines = Math.max(1, ...names.map((lines) => lines.length));
  box.bottom = top + height - em * (1.2 * nameLines + 2.2);
  const to = {
    x: scale(panel.x, box.left, box.right), y: scale(panel.y, box.bottom, box.top), box, axes: panel,
  };

  for (const [value, name] of yTicks) {
    const at = to.y(value);
    group.append(make("path", { d: `M${box.left},${at}L${box.right},${at}`, class: "grid" }));
    say(name, box.left - 0.4 * em, at + 0.35 * em, { "text-anchor": "end" });
  }
  if (names.length) {
    names.forEach((lines, i) =>
      lines.forEach((line, j) =>
        say(line, to.x(i), box.bottom + em * (1.32 + 1.2 * j), { "text-anchor": "middle" })));
  } else {
    for (const [value, name] of ticksOf(panel.x, Math.floor((box.right - box.left) / (4.5 * em)))) {
      const at = to.x(value);
      group.append(make("path", { d: `M${at},${box.top}L${at},${box.bottom}`, class: "grid" }));
      // The number at the right end would otherwise reach beyond the edge of the chart.
      const inside = Math.min(at, left + width - (name.length * WIDE * em) / 2);
      say(name, inside, box.bottom + 1.32 * em, { "text-anchor": "middle" });
    }
  }
  const middle = (box.left + box.right) / 2;
  say(panel.x.label, middle, top + height - 0.5 * em, { "text-anchor": "middle", class: "axis" });
  const ay = (box.top + box.bottom) / 2;
  sideLines.forEach((line, i) => {
    // A capital with an accent stands higher than the font's own line.
    const ax = left + (1.15 + 1.2 * i) * em;
    say(line, ax, ay, { "text-anchor": "middle", class: "axis", transform: `rotate(-90,${ax},${ay})` });
  });

  const clip = make("clipPath", { id });
  const [w, h] = [box.right - box.left, box.bottom - box.top];
  // A little wider than the axes, so that a marker on the edge is whole.
  clip.append(make("rect", { x: box.left - em, y: box.top - em, width: w + 2 * em, height: h + 1.02 * em }));
  const data = make("g", { "clip-path": `url(#${id})` });
  const bars = panel.layers.filter((layer) => layer.kind === "bars");
  for (const layer of panel.layers) {
    const place = { index: bars.indexOf(layer), of: bars.length };
    data.append(...DRAW[layer.kind](layer, palette[layer.style], to, em, place));
  }
  group.append(clip, data);
  group.append(make("path", { d: `M${box.left},${box.top}L${box.left},${box.bottom}L${box.right},${box.bottom}`, class: "spine" }));
  return group;
}

// --- the whole ----------------------------------------------------------------------------------------------

let charts = 0;

/** Put a chart into `el`. Returns `show(picture)`, which redraws it, and `close()`. */
export function mount(el, { title = "", palette = {} } = {}) {
  const id = `rlhf-chart-${charts++}`;
  const svg = make("svg", { role: "img" });
  const numbers = html("div", { class: "numbers" });
  const words = html("figcaption", {});
  // A screen reader hears the state once the hand rests, not at every step of a drag.
  const voice = html("div", { class: "voice", "aria-live": "polite" });
  const head = html("div", { class: "title" }, title);
  const figure = html("figure", { class: "rlhf-chart", role: "group", "aria-label": title }, head, svg, numbers, words, voice);
  el.append(figure);
  let current = null;
  let drawn = 0;
  let timer = 0;
  // Asking for a size makes the browser lay out the whole page: asked when it may have changed, not at every draw.
  let size = null;

  // A letter, the room, the drawing's height in em where the page sets one (a slide has only so much), and the least
  // width in em of panels that stand side by side.
  function measure() {
    const look = getComputedStyle(figure);
    const tall = parseFloat(look.getPropertyValue("--rlhf-chart-height"));
    const least = parseFloat(look.getPropertyValue("--rlhf-chart-panel"));
    return [parseFloat(look.fontSize) || 16, figure.clientWidth, tall || 0, least || 21];
  }

  function draw() {
    if (!current) return;
    size ??= measure();
    const em = size[0];
    const width = Math.max(size[1] || 640, 16 * em);
    const panels = current.panels;
    const shares = panels.reduce((sum, panel) => sum + panel.width, 0);
    const gap = 1.6 * em;
    const row = panels.length > 0 && (width - gap * (panels.length - 1)) / shares >= size[3] * em;
    const each = (size[2] || (row ? 21 : 19)) * em;
    const height = panels.length === 0 ? 0 : row ? each : each * panels.length + gap * (panels.length - 1);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("aria-label", current.text);
    const free = width - gap * (panels.length - 1);
    let at = 0;
    svg.replaceChildren(...panels.map((panel, i) => {
      const share = row ? (panel.width / shares) * free : width;
      const node = row
        ? drawPanel(panel, palette, at, 0, share, height, em, `${id}-${i}`)
        : drawPanel(panel, palette, 0, at, width, each, em, `${id}-${i}`);
      at += (row ? share : each) + gap;
      return node;
    }));
    numbers.replaceChildren(...current.numbers.map(({ symbol, text, unit }) =>
      html("span", { class: "number" }, html("i", {}, symbol), ` = ${text}`, unit ? html("small", {}, ` ${unit}`) : "")));
    words.textContent = current.text;
    head.textContent = current.title ?? title;
    figure.setAttribute("aria-label", head.textContent);
    figure.dataset.language = current.language ?? "";
    figure.classList.toggle("failed", current.failed);
    figure.dataset.drawn = String(++drawn);
    clearTimeout(timer);
    timer = setTimeout(() => { voice.textContent = current.text; }, 600);
  }

  let seen = "";
  const look = () => {
    size = measure();
    if (size.join() !== seen) {
      seen = size.join();
      draw();
    }
  };
  const watcher = new ResizeObserver(look);
  watcher.observe(figure);
  // A page that has changed --rlhf-chart-height says so: no size that the browser watches has changed then.
  figure.addEventListener("rlhf-measure", look);
  return {
    show(picture) {
      current = picture;
      draw();
    },
    close() {
      watcher.disconnect();
      clearTimeout(timer);
      figure.remove();
    },
  };
}

const same = (a, b) =>
  a === b || (typeof a === "number" && typeof b === "number" && Math.abs(a - b) <= 1e-9 * Math.max(Math.abs(a), Math.abs(b)));
const agree = (at, now) => Object.keys(now).every((name) => same(at?.[name], now[name]));
const KNOWN = 256; // pictures kept

export default {
  render({ model, el }) {
    const chart = mount(el, { title: model.get("title"), palette: model.get("palette") });
    // Every picture is a pure function of the controls: one that came before, or was sent ahead, is still true.
    const known = [];
    let hands = [];
    let shown = null;
    const now = () => Object.fromEntries(hands.map(([name, box, key]) => [name, box.get(key)]));
    const keep = (picture) => {
      if (known[0]?.language !== picture.language) known.length = 0;
      known.unshift(picture);
      known.length = Math.min(known.length, KNOWN);
    };
    const show = (picture) => {
      shown = picture;
      chart.show(picture);
    };
    const arrived = () => {
      const picture = model.get("picture");
      keep(picture);
      // Already drawn; or the answer to an older move than the one that is drawn.
      const current = shown?.at && shown.language === picture.language;
      if (picture.at && hands.length && current && agree(shown.at, now())) return;
      show(picture);
    };
    const ahead = (message) => message.ahead && keep(message.ahead);
    const moved = () => {
      const at = now();
      const picture = known.find((one) => one.at && agree(one.at, at));
      if (picture && picture !== shown) show(picture);
    };
    model.on("change:picture", arrived);
    model.on("msg:custom", ahead);
    show(model.get("picture"));
    keep(shown);
    let gone = false;
    Promise.all(model.get("controls").map(async ([name, id, key]) => [name, await model.widget_manager.get_model(id), key]))
      .then((found) => {
        if (gone) return;
        hands = found;
        hands.forEach(([, box, key]) => box.on(`change:${key}`, moved));
      })
      .catch(() => {}); // a page that has the chart without its controls: the kernel's answers are enough
    return () => {
      gone = true;
      model.off("change:picture", arrived);
      model.off("msg:custom", ahead);
      hands.forEach(([, box, key]) => box.off(`change:${key}`, moved));
      chart.close();
    };
  },
};
