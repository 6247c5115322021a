// What tools/slides_check.py asks of the page. It is put into every page of the deck before its own scripts.
"use strict";

window.SlidesCheck = {
  // What cannot be seen or read on the present slide. Lengths are in px of the slide, whatever the window's size.
  faults: (least) => {
    const found = [];
    const slide = window.deck.getCurrentSlide();
    const scale = window.deck.getScale() || 1;
    const edge = slide.getBoundingClientRect();
    const foot = slide.querySelector('footer')?.getBoundingClientRect();
    const px = (v) => Math.round(v / scale);
    const shown = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    const name = (node) => (node.textContent.trim().replace(/\s+/g, ' ').slice(0, 50) || node.tagName);
    const hidden = '.voice, .katex-mathml, template, aside, .rlhf-chart figcaption, [hidden]';
    const rgb = (text) => { const m = text.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
                            return text.startsWith('color(srgb') ? m.map((v, i) => i < 3 ? v * 255 : v) : m; };
    const light = ([r, g, b]) => [r, g, b].map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; })
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (node) => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor);
                               if (c.length < 4 || c[3] > 0.5) return c; } return [255, 255, 255]; };
    // The section itself.
    if (slide.scrollWidth > slide.clientWidth + 1) found.push(`wider than the slide by ${slide.scrollWidth - slide.clientWidth} px`);
    // Text: each run of letters within the slide, above the foot, large enough, dark enough.
    const walker = document.createTreeWalker(slide, NodeFilter.SHOW_TEXT);
    const small = new Map();
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const parent = node.parentElement;
      if (!node.data.trim() || !parent || parent.closest(hidden) || !shown(parent)) continue;
      const style = getComputedStyle(parent);
      const range = document.createRange();
      range.selectNodeContents(node);
      const box = range.getBoundingClientRect();
      if (!box.width || !box.height) continue;
      const words = node.data.trim().replace(/\s+/g, ' ').slice(0, 50);
      if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1 || box.bottom > edge.bottom + 1)
        found.push(`"${words}" lies outside the slide by ${px(Math.max(edge.left - box.left, box.right - edge.right, edge.top - box.top, box.bottom - edge.bottom))} px`);
      else if (foot && !parent.closest('footer') && box.bottom > foot.top + 0.28 * box.height)
        found.push(`"${words}" lies on the foot by ${px(box.bottom - foot.top)} px`);
      const math = parent.closest('.katex');
      // In SVG, computed sizes are before any transform of the picture's own; charts draw at one to one.
      const size = parseFloat(style.fontSize);
      if (size < least - 0.3 && !parent.closest('sub, sup') && !(math && /size[1-6]|sizing/.test(parent.closest('.sizing')?.className ?? '')))
        small.set(Math.round(size * 10) / 10, words);
      if (!parent.closest('svg')) {
        const [a, b] = [light(rgb(style.color)), light(ground(parent))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found.push(`"${words}" has a contrast of ${ratio.toFixed(1)} : 1`);
      }
    }
    for (const [size, words] of small) found.push(`letters of ${size} px: "${words}"`);
    // Boxes: nothing scrolls, nothing is cut, nothing stands outside.
    for (const node of slide.querySelectorAll('.body, .body *')) {
      if (node.closest(hidden) || node.closest('svg') || !shown(node)) continue;
      const style = getComputedStyle(node);
      if (/auto|scroll|hidden|clip/.test(style.overflowX + style.overflowY) && !/select/i.test(node.tagName)
          && !node.closest('.katex') && !node.closest('.noUi-target, .slider-container') && node.clientWidth
          && (node.scrollWidth > node.clientWidth + 2 || node.scrollHeight > node.clientHeight + 2))
        found.push(`${node.className || node.tagName} is cut or scrolls: "${name(node)}"`);
      const box = node.getBoundingClientRect();
      if (/^(IMG|TABLE|FIGURE)$/i.test(node.tagName) && foot && box.bottom > foot.top + 2 * scale)
        found.push(`${node.tagName.toLowerCase()} lies on the foot by ${px(box.bottom - foot.top)} px`);
    }
    for (const formula of slide.querySelectorAll('.katex-html')) {
      if (!shown(formula)) continue;
      const box = formula.getBoundingClientRect(), around = formula.closest('.right, .left, .columns > div, .words, .box, .body, section').getBoundingClientRect();
      if (box.right > around.right + 3 * scale) found.push(`a formula is wider than its place by ${px(box.right - around.right)} px: "${name(formula)}"`);
    }
    // Two columns or rows on one another.
    const blocks = [...slide.querySelectorAll('.body > *, .columns > div > *, .derivation > .line, .words > *')].filter((n) => shown(n) && !n.matches(hidden));
    blocks.forEach((one, i) => { for (const two of blocks.slice(i + 1)) {
      if (one.contains(two) || two.contains(one)) continue;
      const a = one.getBoundingClientRect(), b = two.getBoundingClientRect();
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 3 * scale && high > 4 * scale) found.push(`"${name(one)}" and "${name(two)}" lie on one another by ${px(high)} px`);
    } });
    for (const image of slide.querySelectorAll('img')) {
      if (!shown(image)) continue;
      if (!image.alt.trim()) found.push('a picture without words');
      if (!image.naturalWidth) found.push('a picture that did not load');
      else if (image.clientWidth < 300) found.push(`a picture ${image.clientWidth} px wide`);
    }
    if (!slide.querySelector('aside.notes')?.textContent.trim()) found.push('no speaker notes');
    for (const box of slide.querySelectorAll('.explorer')) {
      if (!box.querySelector('.rlhf-chart svg')) found.push('its explorer is not there');
      if (box.querySelector('.failed')) found.push(`its explorer says: ${box.querySelector('.failed').textContent.trim().slice(0, 80)}`);
      const numbers = box.querySelector('.rlhf-chart .numbers');
      if (foot && numbers && numbers.getBoundingClientRect().bottom > foot.top + 2 * scale) found.push('the numbers lie on the foot');
    }
    return [...new Set(found)];
  },

  // What the current slide shows or names, apart from formulas, code and the other language.
  texts: () => {
    const other = document.documentElement.lang === 'zh' ? 'en' : 'zh';
    const skip = `[lang="${other}"], .katex, code, template, aside, style, script`;
    const found = [];
    const visit = (node) => {
      if (node.nodeType === Node.TEXT_NODE) found.push(node.textContent);
      if (node.nodeType !== Node.ELEMENT_NODE || node.matches(skip)) return;
      found.push(...['alt', 'aria-label', 'title'].map((name) => node.getAttribute(name) ?? ''));
      node.childNodes.forEach(visit);
    };
    visit(window.deck.getCurrentSlide());
    return found;
  },

  // Texts of a chart that nobody can read: cut by its edge, or on one another. A line's box is higher than its letters,
  // by more in one font than in another: what counts is the middle part, in which letters are.
  crowded: (chart) => {
    const found = [];
    const svg = chart.querySelector('svg');
    const edge = svg.getBoundingClientRect();
    const letters = (t) => {
      const r = t.getBoundingClientRect(), upright = r.height > r.width && t.textContent.trim().length > 2;
      const cut = 0.22 * (upright ? r.width : r.height);
      return upright ? { left: r.left + cut, right: r.right - cut, top: r.top, bottom: r.bottom }
                     : { left: r.left, right: r.right, top: r.top + cut, bottom: r.bottom - cut };
    };
    const texts = [...svg.querySelectorAll('text')].filter((t) => t.textContent.trim()).map((t) => [t.textContent, letters(t)]);
    texts.forEach(([words, r], i) => {
      if (r.left < edge.left - 1 || r.right > edge.right + 1 || r.top < edge.top - 1 || r.bottom > edge.bottom + 1)
        found.push(`the text "${words}" is cut off at the chart's edge`);
      for (const [other, q] of texts.slice(i + 1)) {
        const wide = Math.min(r.right, q.right) - Math.max(r.left, q.left);
        const high = Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top);
        if (wide > 2 && high > 0.25 * Math.min(r.bottom - r.top, q.bottom - q.top)) found.push(`the texts "${words}" and "${other}" lie on one another`);
      }
    });
    if (!svg.getAttribute('aria-label')) found.push('a chart without words for a screen reader');
    return found;
  },

  // From a control's event to the frame after its picture: what the hand feels.
  felt: ([slider, key]) => new Promise((done) => {
    const chart = slider.closest('.explorer').querySelector('.rlhf-chart');
    const svg = chart.querySelector('svg');
    const before = svg.innerHTML;
    const begin = performance.now();
    const watcher = new MutationObserver(() => {
      if (svg.innerHTML === before) return;
      watcher.disconnect();
      requestAnimationFrame(() => { const at = performance.now(); setTimeout(() => done(at - begin), 0); });
    });
    watcher.observe(chart, { subtree: true, childList: true, attributes: true, characterData: true });
    setTimeout(() => { watcher.disconnect(); done(null); }, 2500);
    if (slider.matches('input')) {
      slider.value = Number(slider.value) + (key === 'ArrowRight' ? 1 : -1) * Math.max(1, Math.round((slider.max - slider.min) / 12));
      slider.dispatchEvent(new Event('input', { bubbles: true }));
    } else slider.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
  }),

  // On a phone: what lies on the next slide, or makes the page wider than the screen.
  phone: () => {
    const found = [];
    const root = document.documentElement;
    if (root.scrollWidth > innerWidth + 1) found.push(`the page is ${root.scrollWidth} px wide on a screen of ${innerWidth}`);
    for (const slide of document.querySelectorAll('section')) {
      const edge = slide.getBoundingClientRect();
      let low = 0;
      for (const node of slide.querySelectorAll('.body > *, .columns > div > *')) {
        if (node.checkVisibility() && !node.closest('template, aside')) low = Math.max(low, node.getBoundingClientRect().bottom);
      }
      if (low > edge.bottom + 2) found.push(`${slide.id} lies on the next slide by ${Math.round(low - edge.bottom)} px`);
      if (slide.querySelector('.explorer') && !slide.querySelector('.movers')) found.push(`${slide.id}: its explorer has no controls`);
    }
    return found;
  },
};
