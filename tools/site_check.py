"""Check every page of the static site except the slides, opened from disk in a browser without a network.

    python tools/site_check.py [--site build/site] [--only 05_dpo claims] [--out build/site-check] [--full]

Each page is opened 1280 and 375 px wide, in the light and in the dark theme. The check fails if

- the console reports an error, a file is missing, or the page requests anything from another host;
- the page scrolls horizontally, a scrollable box cannot be reached by keyboard, or a control on a phone is smaller
  than 24 px;
- a formula is not rendered, a dollar sign is left over, or a picture has no alternative text or does not load;
- text has a contrast below 4.5 : 1 (large text: 3 : 1), headings skip a level, or an id occurs twice;
- an explorer is missing, reports a failure, has a control that does not change the picture, or has text that is cut
  off or overlaps other text;
- the first press of Tab does not reach the skip link, or a focus is invisible;
- something is wider than a printed page;
- the target of a link does not exist.

Screenshots of the top of each page and of each explorer are saved in `--out`; `--full` adds whole pages.
tools/slides_check.py checks the slides. The check needs playwright and a Chromium (`--chromium`, or one on the PATH).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from browser_check import FLAGS, find_chromium

REPO = Path(__file__).resolve().parent.parent
WIDTHS = (1280, 375)
THEMES = ("light", "dark")

# Returns the faults of the open page as sentences. With `phone`, it also checks the size of controls.
FAULTS = """(phone) => {
  const found = [];
  const say = (text) => { if (found.length < 40 && !found.includes(text)) found.push(text); };
  const words = (node) => node.textContent.trim().replace(/\\s+/g, ' ').slice(0, 60) || node.outerHTML.slice(0, 80);
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth + 1) {
    say(`the page scrolls sideways: ${root.scrollWidth} px`);
    for (const node of document.querySelectorAll('main *, nav *, header *')) {
      const box = node.getBoundingClientRect();
      if (box.right <= innerWidth + 1 || box.width === 0) continue;
      let boxed = false;
      for (let up = node.parentElement; up; up = up.parentElement)
        if (/auto|scroll|hidden|clip/.test(getComputedStyle(up).overflowX) && up !== document.body) boxed = true;
      if (!boxed) { say(`sticks out: <${node.tagName} class="${node.className}"> ${words(node)}`); break; }
    }
  }
  if (!root.lang) say('the page has no language');
  if (!document.title) say('the page has no title');
  if (document.querySelector('.katex-error, span.tex')) say('a formula is not rendered');
  for (const picture of document.images) {
    if (!picture.alt.trim()) say(`no alternative text: ${picture.src}`);
    if (!picture.naturalWidth) say(`does not load: ${picture.src}`);
  }
  const ids = [...document.querySelectorAll('[id]')].map((node) => node.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => say(`the id ${id} occurs twice`));
  let level = 0;
  for (const head of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
    const now = Number(head.tagName[1]);
    if (now > level + 1 || (now === 1 && level)) say(`heading of level ${now} after ${level}: ${words(head)}`);
    level = now;
  }
  for (const node of document.querySelectorAll('a[href], button, summary, input, select')) {
    const name = node.getAttribute('aria-label') || node.closest('label')?.textContent || node.textContent
      || node.querySelector('img')?.alt;
    if (!name?.trim()) say(`has no name: ${node.outerHTML.slice(0, 80)}`);
    if (!phone || !node.checkVisibility() || node.closest('p, .text li, td, .skip, figcaption')) continue;
    const box = (node.closest('label') ?? node).getBoundingClientRect();
    if (!node.matches('.skip') && (box.width < 24 || box.height < 24))
      say(`too small to press, ${Math.round(box.width)} × ${Math.round(box.height)} px: ${words(node)}`);
  }
  for (const box of document.querySelectorAll('main *')) {
    if (box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0 && box.tabIndex < 0
        && /auto|scroll/.test(getComputedStyle(box).overflowX))
      say(`scrolls, but not by keyboard: <${box.tagName} class="${box.className}"> ${words(box)}`);
  }
  // Contrast of every text with its background.
  const rgb = (text) => { const m = text.match(/[\\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
                          return text.startsWith('color(srgb') ? m.map((v, i) => i < 3 ? v * 255 : v) : m; };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => colour.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const c = rgb(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0.5) return c;
    }
    return [255, 255, 255];
  };
  const seen = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest('.katex-mathml, .voice, .skip, script, style, noscript')) continue;
    const start = node.data.trim().slice(0, 50);
    if (node.data.includes('$') && !parent.closest('pre, code')) say(`a dollar is left over: ${start}`);
    if (!parent.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(parent);
    const ink = parent.closest('svg') ? style.fill : style.color;
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const key = `${ink} ${ground(parent)} ${large}`;
    if (!seen.has(key)) {
      const [a, b] = [light(rgb(ink)), light(ground(parent))].sort((x, y) => y - x);
      seen.set(key, (a + 0.05) / (b + 0.05));
      if (seen.get(key) < (large ? 3 : 4.5)) say(`contrast ${seen.get(key).toFixed(2)}: "${start}" in ${ink}`);
    }
  }
  return found;
}"""
# Finds unreadable text in an explorer. Boxes of consecutive lines touch, but letters do not reach the boxes' edges.
UNREADABLE = """(chart) => {
  const found = [];
  const svg = chart.querySelector('svg');
  const edge = svg.getBoundingClientRect();
  const em = parseFloat(getComputedStyle(svg).fontSize);
  const texts = [...svg.querySelectorAll('text')].filter((t) => t.textContent.trim()).map((t) => {
    const r = t.getBoundingClientRect();
    const [x, y] = /rotate/.test(t.getAttribute('transform') ?? '') ? [0.28 * em, 0] : [0, 0.28 * em];
    return { words: t.textContent, left: r.left + x, right: r.right - x, top: r.top + y, bottom: r.bottom - y };
  });
  const shared = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
  texts.forEach((a, i) => {
    if (a.left < edge.left - 1 || a.right > edge.right + 1 || a.top < edge.top - 1 || a.bottom > edge.bottom + 1)
      found.push(`the text "${a.words}" is cut off at the chart's edge`);
    for (const b of texts.slice(i + 1))
      if (shared(a, b, 'left', 'right') > 2 && shared(a, b, 'top', 'bottom') > 2)
        found.push(`the texts "${a.words}" and "${b.words}" overlap`);
  });
  if (!svg.getAttribute('aria-label')) found.push('an explorer without text for a screen reader');
  if (chart.classList.contains('failed')) found.push(`an explorer reports: ${svg.getAttribute('aria-label')}`);
  return found;
}"""
LOADED = """async () => {
  await Promise.all([...document.images].map((picture) => picture.decode().catch(() => {})));
  await document.fonts.ready;
}"""
LINKS = "() => [...document.querySelectorAll('a[href]')].map((node) => node.href)"
ANCHORS = "() => [...document.querySelectorAll('[id]')].map((node) => node.id)"
FOCUS = """() => {
  const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
}"""


PRINTED = """() => {
  const wide = document.documentElement.clientWidth;
  for (const node of document.querySelectorAll('main *'))
    if (!node.closest('.katex-mathml, .voice, svg') && node.getBoundingClientRect().right > wide + 2)
      return [`sticks out of the printed page: ${node.textContent.trim().slice(0, 60) || node.outerHTML.slice(0, 80)}`];
  return [];
}"""


def printed(page: Any) -> list[str]:
    """Parts of the page that would be cut off on paper with 180 mm between its margins."""
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 960})
    page.wait_for_timeout(400)
    return [str(fault) for fault in page.evaluate(PRINTED)]


def inspect_page(page: Any, phone: bool) -> list[str]:
    """The faults of the current page, after its folded parts have been opened."""
    page.evaluate(LOADED)
    page.evaluate("() => { for (const fold of document.querySelectorAll('main details')) fold.open = true; }")
    page.wait_for_timeout(300)
    return [str(fault) for fault in page.evaluate(FAULTS, phone)]


def keyboard(page: Any) -> list[str]:
    """Faults of keyboard navigation: the skip link must come first, and every focus must be visible."""
    faults = []
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.keyboard.press("Tab")
    if page.evaluate("() => document.activeElement.className") != "skip":
        faults.append("the first press of Tab does not reach the skip link")
    for _ in range(6):
        if page.evaluate("() => document.activeElement === document.body"):  # a short page has been traversed
            break
        if not page.evaluate(FOCUS):
            faults.append(
                f"the focus is invisible on {page.evaluate('() => document.activeElement.outerHTML.slice(0, 80)')}"
            )
        page.keyboard.press("Tab")
    return faults


def move(page: Any, box: Any, every: bool) -> list[str]:
    """Move an explorer's first control, or all of them. Each must change the picture."""
    chart = box.locator(".rlhf-chart")
    if chart.count() != 1:
        return ["an explorer is missing"]
    faults = [str(f) for f in page.evaluate(UNREADABLE, chart.element_handle())]
    controls = box.locator(".movers input, .movers select").all()
    for number, control in enumerate(controls if every else controls[:1]):
        start = chart.locator("svg").inner_html()
        changed = False
        for setting in settings(control):
            setting()
            page.wait_for_timeout(60)
            changed = changed or chart.locator("svg").inner_html() != start
        name = control.evaluate("(node) => node.closest('label').textContent.slice(0, 40)")
        if not changed:
            faults.append(f"control {number + 1} ({name!r}) does not change the picture")
        faults += [str(f) for f in page.evaluate(UNREADABLE, chart.element_handle())]
    return list(dict.fromkeys(faults))


def settings(control: Any) -> list[Any]:
    """Actions that move a control and finally return it to its initial value or to an end."""
    kind = control.evaluate("(node) => node.type")
    if kind == "range":
        return [lambda key=key: control.press(key) for key in ("ArrowRight", "ArrowLeft", "End", "Home")]
    if kind == "checkbox":
        return [lambda: control.press("Space")] * 2
    first, count = control.evaluate("(node) => [node.selectedIndex, node.options.length]")
    order = [*(i for i in range(count) if i != first), first]
    return [lambda i=i: control.select_option(index=i) for i in order]


def dead(links: dict[str, set[str]], anchors: dict[str, set[str]], site: Path) -> list[str]:
    """Links whose targets do not exist.

    Args:
        links: the addresses of each page's links, by page.
        anchors: the ids of each page, by its address.
        site: folder in which all targets must be.
    """
    from urllib.parse import unquote, urlsplit

    faults = []
    for page, targets in links.items():
        for target in sorted(targets):
            parts = urlsplit(target)
            if parts.scheme != "file":
                continue
            file = Path(unquote(parts.path))
            if not file.is_file() or not file.is_relative_to(site):
                faults.append(f"{page}: the link {target} has no target")
            elif parts.fragment and not parts.fragment.startswith("/"):
                known = anchors.get(file.as_uri())
                if known is not None and unquote(parts.fragment) not in known:
                    faults.append(f"{page}: there is no anchor {target}")
            elif parts.fragment and f'id="{parts.fragment[1:]}"' not in file.read_text(encoding="utf-8"):
                faults.append(f"{page}: there is no slide {target}")
    return faults


def run(site: Path, out: Path, chromium: str, only: Sequence[str] = (), full: bool = False) -> list[str]:
    """Check the whole site.

    Args:
        site: folder with index.html.
        out: folder for screenshots.
        chromium: path of the browser.
        only: parts of the names of the pages to check; empty for all.
        full: whether to save screenshots of whole pages too.

    Returns:
        the faults, each with its page.
    """
    from playwright.sync_api import sync_playwright

    site = site.resolve()
    every = sorted(p for p in site.rglob("*.html") if p.relative_to(site).parts[0] not in ("slides", "lib"))
    pages = [p for p in every if not only or any(part in p.as_posix() for part in only)]
    out.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    links: dict[str, set[str]] = {}
    anchors: dict[str, set[str]] = {}
    moved = 0
    with sync_playwright() as playwright:
        browser: Any = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, "--no-sandbox"])
        for width in WIDTHS:
            for theme in THEMES:
                context = browser.new_context(
                    viewport={"width": width, "height": 800}, color_scheme=theme, offline=True
                )
                for path in pages:
                    name = path.relative_to(site).as_posix()
                    here = f"{name} at {width} px, {theme}"
                    wrong: list[str] = []
                    page = context.new_page()
                    page.on("console", lambda m, w=wrong: w.append(f"console: {m.text}") if m.type == "error" else None)
                    page.on("pageerror", lambda e, w=wrong: w.append(f"error: {e}"))
                    page.on("requestfailed", lambda r, w=wrong: w.append(f"not loaded: {r.url}"))
                    page.on("request", lambda r, w=wrong: _foreign(r.url, w))
                    page.goto(path.as_uri())
                    shot = out / f"{name.removesuffix('.html').replace('/', '-')}-{width}-{theme}"
                    page.screenshot(path=f"{shot}.png")
                    if full:
                        page.evaluate(LOADED)
                        page.screenshot(path=f"{shot}-full.png", full_page=True)
                    wrong += inspect_page(page, width < 500)
                    if width > 500:
                        wrong += keyboard(page)
                    for number, box in enumerate(page.locator(".explorer").all()):
                        box.scroll_into_view_if_needed()
                        box.screenshot(path=f"{shot}-explorer-{number + 1}.png")
                        wrong += move(page, box, every=(width, theme) == (1280, "light"))
                        moved += 1
                    if (width, theme) == (1280, "dark"):
                        wrong += printed(page)
                    links.setdefault(name, set()).update(page.evaluate(LINKS))
                    anchors[path.as_uri()] = set(page.evaluate(ANCHORS))
                    page.close()
                    faults += [f"{here}: {one}" for one in dict.fromkeys(wrong)]
                context.close()
        browser.close()
    faults += dead(links, anchors, site)
    count = sum(map(len, links.values()))
    ways = len(WIDTHS) * len(THEMES)
    print(f"{len(pages)} pages, each in {ways} settings; {moved} explorers moved; {count} links followed")
    return faults


def _foreign(url: str, wrong: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        wrong.append(f"requests {url}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--site", type=Path, default=REPO / "build" / "site")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "site-check")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the pages to check")
    parser.add_argument("--full", action="store_true", help="also save screenshots of whole pages")
    parser.add_argument("--chromium")
    args = parser.parse_args()
    if not (args.site / "index.html").is_file():
        sys.exit(f"There is no {args.site / 'index.html'}. Run make site first.")
    begin = time.monotonic()
    faults = run(args.site, args.out, find_chromium(args.chromium), args.only, args.full)
    for fault in faults:
        print(f"WRONG {fault}")
    print(f"screenshots in {args.out}; {time.monotonic() - begin:.0f} s")
    print("no faults" if not faults else f"{len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
