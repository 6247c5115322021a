// Pages that are not slides: formulas, and the theme's button.
"use strict";
(() => {
  const root = document.documentElement;
  document.getElementById("theme")?.addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("rlhf-theme", root.dataset.theme); } catch { /* file:// may refuse */ }
  });
  if (window.renderMathInElement) {
    renderMathInElement(document.querySelector("main"), {
      delimiters: [
        { left: "$$", right: "$$", display: true }, { left: "\\begin{align}", right: "\\end{align}", display: true },
        { left: "\\begin{align*}", right: "\\end{align*}", display: true }, { left: "$", right: "$", display: false },
      ],
      ignoredTags: ["script", "noscript", "style", "textarea", "pre", "code", "option"], throwOnError: false, strict: "ignore",
    });
  }
})();
