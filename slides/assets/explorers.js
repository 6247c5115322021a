// Explorers without a kernel: every state was computed when the page was built (slides/compressed_states.py).
// `RlhfChart` is rlhf_lab/widgets/chart.js, which draws the same pictures in the notebooks.
"use strict";

window.StaticExplorers = (() => {
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  /** Picture number `at`: what all share, with the values that are its own put into their places. */
  function unfold(states, at, texts = {}) {
    const picture = structuredClone(states.same);
    for (const [slot, [path, english, which, parts]] of states.slots.entries()) {
      const values = texts[slot] ?? english;
      // With parts, a value is a list of their numbers (slides/static_states.py).
      const value = parts ? values[which[at]].map((number) => parts[number]) : values[which[at]];
      if (!path.length) return structuredClone(value);
      let place = picture;
      for (const key of path.slice(0, -1)) place = place[key];
      place[path.at(-1)] = value;
    }
    return picture;
  }

  const TEXTS = ["label", "title", "text", "unit", "symbol", "names"]; // slides/compressed_states.py

  /** A copy of `value` in which every text of `words` is replaced by its translation. */
  function translated(value, words, key = "") {
    if (typeof value === "string") return TEXTS.includes(key) ? words[value] ?? value : value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((one) => translated(one, words, key));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, translated(one, words, name)]));
  }

  /** An explorer in `el`, which follows the page's language if its states have a second one. */
  function mount(el, states) {
    const chosen = states.controls.map((control) => control.first);
    const controls = make("div", { class: "movers" });
    el.append(controls);
    const chart = RlhfChart.mount(el, { title: states.title, palette: states.palette });
    let here = states; // the states as the page's language shows them
    let texts = {};
    const show = () => {
      const at = states.controls.reduce((sum, control, i) => sum * control.names.length + chosen[i], 0);
      const picture = unfold(states, at, texts);
      chart.show({ ...(here === states ? picture : translated(picture, states.zh.words)), title: here.title });
    };
    const fill = () => {
      const zh = states.zh && document.documentElement.lang === "zh" ? states.zh : null;
      here = zh ? { title: zh.words[states.title] ?? states.title, controls: translated(states.controls, zh.words) } : states;
      texts = zh?.values ?? {};
      controls.replaceChildren();
      here.controls.forEach(control_);
      show();
    };
    const control_ = (control, i) => {
      const label = make("label", {}, make("span", {}, control.label));
      if (control.kind === "slider") {
        const range = make("input", { type: "range", min: 0, max: control.names.length - 1, step: 1, value: chosen[i] });
        const output = make("output", {}, control.names[chosen[i]]);
        range.setAttribute("aria-valuetext", control.names[chosen[i]]);
        range.addEventListener("input", () => {
          chosen[i] = Number(range.value);
          output.textContent = control.names[chosen[i]];
          range.setAttribute("aria-valuetext", control.names[chosen[i]]);
          show();
        });
        // The slides' keys must not take the slider's.
        range.addEventListener("keydown", (event) => {
          if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) event.stopPropagation();
        });
        label.append(range, output);
      } else if (control.kind === "choice") {
        const select = make("select", {}, ...control.names.map((name, j) => make("option", j === chosen[i] ? { selected: "" } : {}, name)));
        select.addEventListener("change", () => { chosen[i] = select.selectedIndex; show(); });
        label.append(select);
      } else {
        const box = make("input", { type: "checkbox" });
        box.checked = chosen[i] === 1;
        box.addEventListener("change", () => { chosen[i] = Number(box.checked); show(); });
        label.prepend(box);
      }
      controls.append(label);
    };
    fill();
    if (states.zh) addEventListener("slides-language", fill);
  }

  function mountAll() {
    for (const el of document.querySelectorAll("[data-states]")) {
      const states = window.RlhfStates?.[el.dataset.states];
      if (states && !el.dataset.mounted) {
        el.dataset.mounted = "yes";
        mount(el, states);
      }
    }
  }

  return { mount, mountAll, translated, unfold };
})();
