// Pages that are not slides: the theme's button, and what the page's width decides. All of it only helps: the text,
// its formulas and pictures are there without.
"use strict";
(() => {
  const root = document.documentElement;
  document.getElementById("theme")?.addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("rlhf-theme", root.dataset.theme); } catch { /* file:// may refuse */ }
  });

  // Beside the text where there is room, folded above it where there is not.
  const contents = document.querySelector(".contents details");
  const roomy = matchMedia("(min-width: 78rem)");
  const unfold = () => { if (contents) contents.open = roomy.matches; };
  roomy.addEventListener("change", unfold);
  unfold();

  // What is wider than its place scrolls there; the keyboard must reach it too.
  const boxes = "pre, .scroll, .katex-display, .katex.wide, figure, table.many td, .derivation td, .derivation td > div";
  const look = () => {
    if (matchMedia("print").matches) return;
    for (const formula of document.querySelectorAll("main .katex")) {
      if (formula.closest(".katex-display, .scroll td, .derivation, pre")) continue;
      formula.classList.remove("wide");
      const room = formula.closest("p, li, td, h1, h2, h3, summary, figcaption, div")?.clientWidth ?? Infinity;
      if ([...formula.querySelectorAll(".base")].some((part) => part.offsetWidth > room)) formula.classList.add("wide");
    }
    // On paper nothing scrolls: a formula wider than A4's 180 mm is set smaller there, where letters have 14 px.
    const left = document.querySelector("main > *")?.getBoundingClientRect().left ?? 0;
    const scale = 14 / parseFloat(getComputedStyle(document.body).fontSize);
    for (const formula of document.querySelectorAll(".katex-display > .katex")) {
      const drawn = document.createRange();
      drawn.selectNodeContents(formula.querySelector(".katex-html") ?? formula);
      const room = 660 - (formula.parentElement.getBoundingClientRect().left - left) * scale;
      const fit = room / (drawn.getBoundingClientRect().width * scale);
      if (fit < 1) formula.style.setProperty("--fit", fit.toFixed(3));
      else formula.style.removeProperty("--fit");
    }
    for (const box of document.querySelectorAll(boxes)) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(box).overflowX);
      if (scrolls) box.tabIndex = 0;
      else if (box.hasAttribute("tabindex")) box.removeAttribute("tabindex");
    }
  };
  let waiting = 0;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(look, 150); };
  addEventListener("resize", soon);
  addEventListener("load", look);
  document.addEventListener("toggle", soon, true);
})();
