// The sliders of the Steering page. While one is dragged everything is worked out here, from numbers that were sent once:
// the next-token distribution is closed form in the step, the rest is read off curves. The server is asked on release.
const MINUS = "\u2212";

function digits(value) {
  // three significant digits, as people write them
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-4) return value.toExponential(1).replace("e-", "e" + MINUS).replace("e+", "e");
  return Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 7 });
}
const times = (ratio) => (ratio >= 0.995 ? `${digits(ratio)}×` : `1/${digits(1 / ratio)}`);
const percent = (share) => `${digits(100 * share)} %`;

function along(xs, ys, x) {
  // a monotone cubic between the points of an ascending grid (Fritsch and Butland 1984), flat beyond it
  if (x <= xs[0]) return ys[0];
  let high = 1;
  while (high < xs.length - 1 && xs[high] < x) high += 1;
  if (x >= xs[high]) return ys[high];
  const wide = (i) => xs[i + 1] - xs[i];
  const rise = (i) => (ys[i + 1] - ys[i]) / wide(i);
  const slope = (i) => {
    if (i === 0) return rise(0);
    if (i === xs.length - 1) return rise(i - 1);
    if (rise(i - 1) * rise(i) <= 0) return 0;
    const [before, after] = [2 * wide(i) + wide(i - 1), wide(i) + 2 * wide(i - 1)];
    return (before + after) / (before / rise(i - 1) + after / rise(i));
  };
  const low = high - 1;
  const t = (x - xs[low]) / wide(low);
  return (
    ys[low] + t * t * (3 - 2 * t) * (ys[high] - ys[low]) +
    wide(low) * t * (1 - t) * ((1 - t) * slope(low) - t * slope(high))
  );
}

function costAlong(curve, name, power, step) {
  // what grows from nothing with the step, as a power of it, is read off where it is a smooth line through 0
  const { steps } = curve;
  const none = steps.indexOf(0);
  if (none < 0 || curve[name][none] > 1e-9) return along(steps, curve[name], step);
  const lines = curve[name].map((value, i) => Math.sign(steps[i]) * value ** (1 / power));
  return Math.abs(along(steps, lines, step)) ** power;
}

function stepFor(edit, ratio, calibrated) {
  const wanted = Math.log(ratio);
  if (ratio === edit.ratio) return edit.step;
  if (!calibrated) return wanted;
  return along(edit.curve.logRealised, edit.curve.steps, wanted);
}

function atPrompt(data, steps) {
  // p'_i = p_i e^δ_i / (1 + Σ p_j (e^δ_j − 1)); every other token by the same factor
  const f = (z) => (data.softcap === null ? z : data.softcap * Math.tanh(z / data.softcap));
  const pushed = data.edits.map((edit, i) => {
    const moved = data.onLogits ? steps[i] : f(edit.logit + data.shift * steps[i]) - f(edit.logit);
    return edit.p * Math.exp(Math.max(-600, Math.min(600, moved)));
  });
  const before = data.edits.reduce((sum, edit) => sum + edit.p, 0);
  const scale = 1 / (Math.max(1 - before, 0) + pushed.reduce((sum, x) => sum + x, 0));
  return data.shown.map((row) => scale * (row.edit === null ? row.before : pushed[row.edit]));
}

class Knobs {
  constructor(root) {
    this.root = root;
    this.root.replaceChildren();
    this.rows = this.make("div", "knob-rows", root);
    this.told = this.make("p", "knob-told", root);
    this.told.setAttribute("aria-live", "polite");
    const figures = this.make("div", "knob-figures", root);
    const [next, range] = ["next", "range"].map((name) => {
      const box = this.make("figure", "knob-figure", figures);
      const title = this.make("figcaption", "", box);
      const body = this.make("div", `knob-${name}`, this.make("div", "knob-plot", box));
      body.setAttribute("role", "img");
      return { box, title, body };
    });
    this.next = next;
    this.range = range;
    this.range.point = this.make("div", "knob-now", range.body.parentElement);
    this.range.drawn = "";
    this.ids = "";
    this.active = 0;
    this.frames = 0;
    this.held = false;
    this.unheard = new Set(); // places of sliders whose last move the server has not answered
    const app = document.querySelector("[data-test-connection-state]");
    const back = new MutationObserver(() => {
      if (!this.root.isConnected) back.disconnect();
      else if (app.dataset.testConnectionState === "CONNECTED") this.unheard.forEach((i) => this.tell(i));
    });
    if (app) back.observe(app, { attributeFilter: ["data-test-connection-state"] });
  }

  make(kind, name, parent) {
    const made = document.createElement(kind);
    if (name) made.className = name;
    parent.append(made);
    return made;
  }

  update(data, send) {
    this.data = data;
    this.send = send;
    const ids = data.edits.map((edit) => edit.id).join();
    if (ids !== this.ids) this.build();
    this.ids = ids;
    this.active = Math.min(this.active, data.edits.length - 1);
    if (this.held) return; // the hand is on a slider: what it shows is newer than what came
    this.unheard.clear();
    data.edits.forEach((edit, i) => {
      const slider = this.sliders[i];
      slider.max = edit.options.length - 1;
      slider.value = edit.options.reduce((best, option, at) =>
        Math.abs(Math.log(option / edit.ratio)) < Math.abs(Math.log(edit.options[best] / edit.ratio)) ? at : best, 0);
    });
    loadPlotly(data.plotly).then(() => this.redraw());
  }

  build() {
    this.rows.replaceChildren();
    this.held = false;
    this.unheard.clear();
    this.values = [];
    this.labels = [];
    this.sliders = this.data.edits.map((edit, i) => {
      const row = this.make("div", "knob-row", this.rows);
      const label = this.make("label", "", row);
      const chip = this.make("span", "hs-chip hs-steered", label);
      chip.textContent = edit.token;
      chip.title = `id ${edit.id}`;
      this.labels.push(this.make("span", "knob-odds", label));
      const line = this.make("div", "knob-line", row);
      const slider = this.make("input", "", line);
      slider.type = "range";
      slider.min = 0;
      slider.max = edit.options.length - 1;
      slider.step = 1;
      slider.id = `knob-${edit.id}`;
      label.htmlFor = slider.id;
      slider.addEventListener("pointerdown", () => this.hold());
      slider.addEventListener("input", () => this.moved(i));
      slider.addEventListener("change", () => this.released(i));
      slider.addEventListener("blur", () => (this.held = false));
      this.values.push(this.make("output", "", line));
      if (this.data.fixed) return slider; // where the list is not the reader's to change
      const remove = this.make("button", "", line);
      remove.type = "button";
      remove.textContent = "✕";
      remove.setAttribute("aria-label", `Take ${edit.token} off the list`);
      remove.title = "Take this token off the list";
      remove.addEventListener("click", () => this.send("removed", edit.id));
      return slider;
    });
  }

  ratios() {
    return this.data.edits.map((edit, i) => {
      const chosen = edit.options[Number(this.sliders[i].value)] ?? edit.ratio;
      return Math.abs(Math.log(chosen / edit.ratio)) < 1e-6 ? edit.ratio : chosen;
    });
  }

  moved(i) {
    this.active = i;
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  hold() {
    this.held = true; // until the hand lets go, wherever: the slider may be gone from under it
    for (const end of ["pointerup", "pointercancel"])
      window.addEventListener(end, () => (this.held = false), { once: true, capture: true });
  }

  released(i) {
    this.held = false;
    this.tell(i);
  }

  tell(i) {
    // what is sent while the connection is away is lost: it is sent again when it is back
    this.unheard.add(i);
    const edit = this.data.edits[i];
    this.send("moved", { id: edit.id, ratio: this.ratios()[i] });
  }

  now() {
    const { data } = this;
    const ratios = this.ratios();
    const steps = data.edits.map((edit, i) => stepFor(edit, ratios[i], data.calibrated));
    return { ratios, steps };
  }

  redraw() {
    // everything anew: other tokens, another prompt, other colours
    const { data } = this;
    for (const [name, colour] of Object.entries(data.colours)) this.root.style.setProperty(`--${name}`, colour);
    for (const name of ["next", "range"]) {
      const given = data.figures[name];
      this[name].box.hidden = !given;
      if (!given) continue;
      this[name].title.textContent = given.title;
      this[name].body.setAttribute("aria-label", given.summary);
    }
    this.bars();
    this.curves();
    this.draw();
  }

  curves() {
    // the figure of the whole range, where it is another one: Plotly takes longer to draw than all the rest
    const { data, range } = this;
    const figure = JSON.stringify(data.figures.range?.figure ?? "");
    if (figure === range.drawn) return;
    range.drawn = figure;
    if (!data.figures.range) return;
    const { data: traces, layout } = JSON.parse(figure);
    window.Plotly.react(range.body, traces, layout, { displayModeBar: false });
    if (range.followed) return;
    for (const event of ["plotly_afterplot", "plotly_relayouting"]) range.body.on(event, () => this.point());
    range.followed = new ResizeObserver(() => range.body.clientWidth && window.Plotly.Plots.resize(range.body));
    range.followed.observe(range.body); // it stands alone until the model can answer the prompt, then beside
  }

  point() {
    // where the slider stands on the first token's curve; not one of Plotly's, which would draw all of it anew
    const { range, at } = this;
    const { xaxis, yaxis } = range.body._fullLayout ?? {};
    if (!xaxis || !at) return;
    const [x, y] = [xaxis.d2p(at.ratio), yaxis.d2p(at.heldOut)];
    const seen = x >= 0 && x <= xaxis._length && y >= 0 && y <= yaxis._length;
    range.point.hidden = !seen;
    range.point.style.left = `${xaxis._offset + x}px`;
    range.point.style.top = `${yaxis._offset + y}px`;
    range.point.dataset.asked = at.ratio;
    range.point.dataset.told = `now: ${times(at.ratio)}`;
    range.point.classList.toggle("knob-now-below", at.ratio < 1);
  }

  bars() {
    // two bars a token, before and after; plain boxes, since these are redrawn at the rate of the screen
    const { data, next } = this;
    next.body.replaceChildren();
    const key = this.make("p", "knob-key", next.body);
    for (const side of ["before", "after"]) {
      this.make("span", `knob-bar knob-${side}`, key);
      key.append(side);
    }
    this.pairs = data.shown.map((row) => {
      const line = this.make("div", row.edit === null ? "knob-pair" : "knob-pair knob-steered", next.body);
      const name = this.make("span", "knob-token", line);
      name.textContent = row.token;
      name.title = `id ${row.id}`;
      const both = this.make("div", "knob-bars", line);
      return ["before", "after"].map((side) => {
        const place = this.make("div", "knob-bar-line", both);
        return { bar: this.make("span", `knob-bar knob-${side}`, place), value: this.make("span", `knob-value knob-value-${side}`, place) };
      });
    });
  }

  draw() {
    const { data } = this;
    const { ratios, steps } = this.now();
    data.edits.forEach((edit, i) => {
      const value = times(ratios[i]);
      this.values[i].textContent = value;
      this.sliders[i].setAttribute("aria-valuetext", value);
      const odds = (p) => `1 in ${digits(1 / p)}`;
      this.labels[i].textContent = `${odds(edit.alpha)} → ${odds(edit.alpha * ratios[i])}${edit.limit}`;
    });
    const edit = data.edits[this.active];
    const { curve } = edit;
    const step = steps[this.active];
    const ratio = ratios[this.active];
    // where nothing was moved since the server answered, what it said; else what the curves say
    const exact = ratios.every((each, i) => each === data.edits[i].ratio);
    const { realised, heldOut, drift, kl } = exact ? edit.now : {
      realised: Math.exp(along(curve.steps, curve.logRealised, step)),
      heldOut: Math.exp(along(curve.steps, curve.logHeldOut, step)),
      drift: costAlong(curve, "drift", 1, step),
      kl: costAlong(curve, "kl", 2, step),
    };
    this.told.textContent =
      `${edit.token} asked ${times(ratio)}: ${exact ? "" : "about "}${times(realised)} on the fitting text, ${times(heldOut)} on held-out text; ` +
      `every other token moves by ${digits(drift)} nats, KL ${digits(kl)} nats.`;
    const after = atPrompt(data, steps);
    const most = Math.max(1e-12, ...after, ...data.shown.map((row) => row.before));
    this.pairs?.forEach((pair, i) => {
      [data.shown[i].before, after[i]].forEach((p, side) => {
        pair[side].bar.style.width = `${(100 * p) / most}%`;
        pair[side].value.textContent = percent(p);
      });
    });
    if (data.figures.range?.edit === this.active) {
      this.at = { ratio, heldOut };
      this.point();
    }
    this.frames += 1;
    this.root.dataset.frames = this.frames; // for the test that counts redraws
  }
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".knobs");
  root.knobs ??= new Knobs(root);
  root.knobs.update(data, setTriggerValue);
}
