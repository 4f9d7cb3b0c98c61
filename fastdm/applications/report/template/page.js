"use strict";
(() => {
  const recorded = JSON.parse(document.getElementById("frames").textContent);
  const slider = document.getElementById("iteration");
  if (!slider) return;
  const output = document.getElementById("at");
  const play = document.getElementById("play");

  // Each run's sheet is the background of its tiles: one rule of one style element. A sheet that was not decoded
  // before would flash, so each is, once, when it is first needed or when the page has nothing else to do.
  const runs = recorded.runs.map((run, number) => {
    if (!run.at.length) return null;
    const rule = document.getElementById(`run-${number}`).sheet.cssRules[0];
    const urls = run.sheets.map((url) => `url(${url})`).concat(rule.style.backgroundImage);
    return { at: run.at, rule, urls, ready: new Map() };
  });

  function decode(run, frame) {
    if (!run.ready.has(frame)) {
      const image = new Image();
      image.src = run.urls[frame].slice(4, -1).replace(/"/g, "");
      run.ready.set(frame, image.decode().then(() => image));
    }
    return run.ready.get(frame);
  }

  function frameAt(run, iteration) {
    let frame = 0;
    while (frame + 1 < run.at.length && run.at[frame + 1] <= iteration) frame += 1;
    return frame;
  }

  let asked = 0;
  async function show() {
    const iteration = recorded.iterations[Number(slider.value)];
    const mine = ++asked;
    output.textContent = iteration.toLocaleString("en");
    slider.setAttribute("aria-valuetext", `iteration ${iteration}`);
    for (const run of runs) {
      if (!run) continue;
      const frame = frameAt(run, iteration);
      await decode(run, frame);
      if (mine !== asked) return;
      run.rule.style.backgroundImage = run.urls[frame];
    }
  }

  let timer = 0;
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }
  function start() {
    if (slider.value === slider.max) slider.value = slider.min;
    show();
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      if (slider.value === slider.max) return stop();
      slider.stepUp();
      show();
    }, 400);
  }

  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => (timer ? stop() : start()));
  document.querySelector(".slider").hidden = false;
  show();
})();
