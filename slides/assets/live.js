// The live view: a kernel behind the explorers, and what to do when it is gone.
"use strict";

window.SlidesLive = { speakerUrl: new URL("static/page/slides/index.html", window.SlidesBase).href };

(() => {
  const badge = Object.assign(document.createElement("div"), { className: "badge" });
  badge.setAttribute("role", "status");
  const say = (state, en, zh) => {
    if (badge.dataset.state === state) return;
    badge.dataset.state = state;
    badge.innerHTML = `<span lang="en">${en}</span><span lang="zh">${zh}</span>`;
  };
  document.addEventListener("DOMContentLoaded", () => document.body.append(badge));
  say("starting", "kernel starting …", "内核启动中……");

  // A heartbeat through the kernel itself: whatever is wrong with it, no answer is what counts.
  const PATIENCE = 6000; // ms without an answer
  let asked = 0, answered = 0, model = null;
  async function heartbeat() {
    const app = window.jupyterapp;
    const id = document.getElementById("heartbeat-model")?.textContent.trim();
    if (!app?.widgetManager || !id) return;
    if (!model) {
      try {
        model = await app.widgetManager.get_model(id);
      } catch { return; }
      model.on("msg:custom", (message) => {
        if (message.pong) {
          answered = performance.now();
          say("well", "", "");
          document.documentElement.dataset.kernel = "well";
        }
      });
    }
    const now = performance.now();
    if (answered >= asked) asked = now; // the last question has its answer: this one counts from here
    else if (now - asked > PATIENCE) {
      // Still asked: a kernel that was only busy for long comes back by itself.
      say("gone", "The kernel is gone: press K", "内核已断开：按 K 恢复");
      document.documentElement.dataset.kernel = "gone";
    }
    try { model.send({ ping: 1, language: document.documentElement.lang }); } catch { /* found out by the missing answer */ }
  }
  setInterval(heartbeat, 1500);
  addEventListener("slides-language", heartbeat);

  const revive = () => { location.reload(); };
  const code = () => {
    const section = window.deck.getCurrentSlide();
    const source = document.querySelector(`template[data-code="${section.id}"]`);
    Slides.sheet("code", (node) => {
      const none = document.documentElement.lang === "zh" ? "本页没有代码" : "no code on this slide";
      const title = source ? section.id : none;
      node.innerHTML = "<h2></h2><pre></pre>";
      node.firstChild.textContent = title;
      node.lastChild.textContent = source ? source.content.textContent : "";
    });
  };
  addEventListener("slides-ready", () => {
    window.deck.addKeyBinding({ keyCode: 75 }, revive);
    window.deck.addKeyBinding({ keyCode: 67 }, code);
  });
})();
