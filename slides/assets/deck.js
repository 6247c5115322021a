// What both views share: language, theme, keys, notes, and reveal.js itself. No library but reveal.js.
"use strict";

window.Slides = (() => {
  const root = document.documentElement;
  const query = new URLSearchParams(location.search);
  const receiver = query.has("receiver"); // inside the speaker view
  const printing = query.has("print-pdf") || query.get("view") === "print";
  const keep = (name, value) => { try { localStorage.setItem(`rlhf-${name}`, value); } catch { /* file:// may refuse */ } };
  const kept = (name) => { try { return localStorage.getItem(`rlhf-${name}`); } catch { return null; } };
  let deck = null;

  // A name that is no text of the page (a tooltip, the page's title) stands in data-en and data-zh.
  function rename(node) {
    const name = node.dataset[root.lang];
    if (node.tagName === "TITLE") document.title = name;
    else node.setAttribute("aria-label", name);
    if (node.title) node.title = name;
  }

  function language(to) {
    root.lang = to;
    document.querySelectorAll("[data-en]").forEach(rename);
    document.querySelectorAll("section").forEach((section) => {
      const from = section.querySelector(`template[data-notes="${to}"]`);
      const notes = section.querySelector("aside.notes");
      if (from && notes) notes.innerHTML = from.innerHTML;
    });
    keep("lang", to);
    dispatchEvent(new CustomEvent("slides-language", { detail: to }));
  }

  function switchLanguage() {
    language(root.lang === "en" ? "zh" : "en");
    // The address says the language, so that a reload, a bookmark and a shared link keep it.
    const search = new URLSearchParams(location.search);
    search.set("lang", root.lang);
    try { history.replaceState(null, "", `?${search}${location.hash}`); } catch { /* not allowed from file:// in some browsers */ }
    deck?.dispatchEvent({ type: "slidechanged", data: { currentSlide: deck.getCurrentSlide(), indexh: deck.getIndices().h, indexv: 0 } });
  }

  function theme(to) {
    root.dataset.theme = to;
    document.body.dataset.jpThemeLight = String(to !== "dark");
    keep("theme", to);
  }

  const KEYS = [
    ["→ ␣ PgDn", "next", "下一步"], ["← PgUp", "back", "上一步"], ["F", "full screen", "全屏"],
    ["S", "speaker view", "演讲者视图"], ["L", "中文", "English"], ["T", "light or dark", "明暗主题"],
    ["C", "the explorer's code", "查看代码"], ["K", "a new kernel, same slide", "换新内核，停在本页"],
    ["Esc", "overview", "总览"], ["B", "black screen", "黑屏"], ["?", "these keys", "按键说明"],
  ];

  function sheet(kind, fill) {
    let node = document.querySelector(`.sheet.${kind}`);
    if (!node) {
      node = Object.assign(document.createElement("div"), { className: `sheet ${kind}`, tabIndex: -1 });
      node.setAttribute("role", "dialog");
      node.addEventListener("click", (event) => { if (kind === "help" || event.target === node) node.classList.remove("open"); });
      node.addEventListener("keydown", (event) => { if (event.key === "Escape") { node.classList.remove("open"); event.stopPropagation(); } });
      document.body.append(node);
    }
    if (node.classList.toggle("open")) { fill(node); node.focus(); }
  }

  /** Give an explorer's drawing the height that its slide has left: one controls' row more or less is no matter. */
  function fit(section) {
    const box = section?.querySelector(".explorer");
    const chart = box?.querySelector(".rlhf-chart");
    if (!chart || root.classList.contains("phone")) return;
    const letter = parseFloat(getComputedStyle(chart).fontSize);
    const svg = chart.querySelector("svg");
    const now = svg.clientHeight / letter;
    if (!now) return;
    const scale = deck.getScale() || 1;
    const room = box.clientHeight - (chart.getBoundingClientRect().bottom - box.getBoundingClientRect().top) / scale;
    const stacked = Math.round(now / (parseFloat(getComputedStyle(chart).getPropertyValue("--rlhf-chart-height")) || now));
    if (stacked > 1) return; // panels one below the other: no height is right
    const height = Math.max(9, Math.min(22, Math.floor((now + room / letter) * 10) / 10));
    if (Math.abs(height - now) < 0.1) return;
    box.style.setProperty("--rlhf-chart-height", height);
    chart.dispatchEvent(new Event("rlhf-measure"));
  }

  function fitSoon() {
    const section = deck?.getCurrentSlide();
    fit(section);
    setTimeout(() => fit(section), 60);
  }

  function help() {
    const live = Boolean(window.SlidesLive);
    sheet("help", (node) => {
      const rows = KEYS.filter(([key]) => live || (key !== "K" && key !== "C"))
        .map(([key, en, zh]) => `<tr><td><kbd>${key}</kbd></td><td><span lang="en">${en}</span><span lang="zh">${zh}</span></td></tr>`);
      node.innerHTML = `<table>${rows.join("")}</table>`;
    });
  }

  function bar() {
    const node = Object.assign(document.createElement("nav"), { className: "bar" });
    const put = (part, en, zh) => {
      Object.assign(part.dataset, { en, zh });
      rename(part);
      if (part !== node) node.append(part);
    };
    put(node, "slides", "幻灯片");
    const add = (text, en, zh, act, kind = "") => {
      const button = Object.assign(document.createElement("button"), { type: "button", innerHTML: text, title: en, className: kind });
      button.addEventListener("click", act);
      put(button, en, zh);
    };
    add("‹", "previous", "上一页", () => deck?.prev(), "pager");
    add("›", "next", "下一页", () => deck?.next(), "pager");
    add('<span lang="en">中文</span><span lang="zh">English</span>', "Chinese", "英文", switchLanguage);
    add("◐", "light or dark", "明暗主题", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
    add("?", "keys", "按键说明", help, "pager");
    if (!window.SlidesLive) {
      put(Object.assign(document.createElement("a"), { href: "../index.html", textContent: "⌂", title: "all pages" }), "all pages", "全部页面");
    }
    document.body.prepend(node);
    let timer = 0;
    addEventListener("mousemove", () => {
      node.classList.add("awake");
      clearTimeout(timer);
      timer = setTimeout(() => node.classList.remove("awake"), 1800);
    });
  }

  function start() {
    language(["en", "zh"].includes(query.get("lang")) ? query.get("lang") : kept("lang") ?? "en");
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    theme(printing ? "light" : query.get("theme") ?? kept("theme") ?? (dark && !window.SlidesLive ? "dark" : "light"));
    if (!receiver) bar();
    const narrow = Math.min(innerWidth, screen.width || innerWidth) < 700 && !receiver && !printing;
    if (narrow) {
      root.classList.add("phone");
      return;
    }
    deck = new Reveal({
      width: 1280, height: 720, margin: 0, minScale: 0.1, maxScale: 6, center: false, hash: true, history: false,
      fragmentInURL: true, controls: false, progress: false, slideNumber: false, transition: "none",
      backgroundTransition: "none", keyboardCondition: null, pdfSeparateFragments: false, pdfMaxPagesPerSlide: 1,
      viewDistance: 2, display: "flex", scrollActivationWidth: null, help: false, touch: true,
      url: window.SlidesLive?.speakerUrl, plugins: window.RevealNotes ? [window.RevealNotes] : [],
    });
    window.deck = deck;
    deck.initialize().then(() => {
      root.dataset.ready = "yes";
      // A control may take a second row, numbers may come and go, widgets may arrive late.
      const sizes = new ResizeObserver(() => fitSoon());
      document.querySelectorAll(".explorer").forEach((box) => {
        const found = () => {
          if (!box.querySelector(".rlhf-chart svg")) return false;
          box.querySelectorAll(".movers, .widget-box, .rlhf-chart .numbers").forEach((part) => sizes.observe(part));
          return true;
        };
        if (found()) return;
        const watcher = new MutationObserver(() => { if (found()) { watcher.disconnect(); fitSoon(); } });
        watcher.observe(box, { childList: true, subtree: true });
      });
      if (printing) document.querySelectorAll("section").forEach(fit);
      fitSoon();
      dispatchEvent(new CustomEvent("slides-ready"));
    });
    if (receiver) return;
    const keys = { 76: switchLanguage, 84: () => theme(root.dataset.theme === "dark" ? "light" : "dark"), 191: help };
    for (const [code, act] of Object.entries(keys)) deck.addKeyBinding({ keyCode: Number(code) }, act);
    addEventListener("keydown", (event) => { if (event.key === "?") help(); });
    // A clicker's keys always belong to the slides: from a slider that has the focus too.
    addEventListener("keydown", (event) => {
      const at = document.activeElement;
      if (!["PageDown", "PageUp"].includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (!at || at === document.body || at.matches("textarea, input[type=text], .sheet")) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      at.blur();
      if (event.key === "PageDown") deck.next(); else deck.prev();
    }, true);
    // Arrow keys belong to a slider while it has the focus; they come back to the slides with the next slide's key.
    deck.on("slidechanged", fitSoon);
    addEventListener("slides-language", fitSoon);
    deck.on("slidechanged", () => { if (document.activeElement !== document.body) document.activeElement?.blur(); });
  }

  return { start, sheet, language, switchLanguage, theme, get deck() { return deck; }, receiver, printing };
})();
