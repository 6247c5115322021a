// Before anything is painted: the theme that was chosen, or the system's.
document.documentElement.dataset.theme = (() => {
  try { const kept = localStorage.getItem("rlhf-theme"); if (kept) return kept; } catch { /* file:// may refuse */ }
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
})();
