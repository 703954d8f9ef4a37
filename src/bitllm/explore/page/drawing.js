// What is drawn: words with their bits, what the adapters read, the voxels of a brain.

const MOST_BITS = 6; // from here on the colour does not grow

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function signed(value, digits = 1) {
  const rounded = Number(value.toFixed(digits));
  const text = Math.abs(rounded).toFixed(digits);
  return rounded > 0 ? `+${text}` : rounded < 0 ? `−${text}` : text;
}

export function colour(value, most) {
  const share = Math.min(Math.abs(value) / most, 1);
  return `rgba(var(${value < 0 ? "--less" : "--more"}), ${(0.42 * share).toFixed(3)})`;
}

export function wordList(words, before) {
  const known = new Set((before ?? words).map((one) => one.word));
  const list = element("ol", { class: "words", "aria-label": "Words with their bits" });
  for (const { word, bits } of words) {
    const item = element("li", {}, word, " ", element("span", { class: "bits" }, signed(bits)));
    item.style.background = colour(bits, MOST_BITS);
    if (!known.has(word)) {
      item.className = "new";
      item.title = "not in the caption of the unchanged betas";
    }
    list.append(item);
  }
  return list;
}

export function lostWords(words) {
  const sum = signed(-total(words));
  return [element("p", { class: "total" }, `The words of the unchanged caption lost or gained by the change (${sum} bits in all):`),
    wordList(words.map(({ word, bits }) => ({ word, bits: -bits })))];
}

export function total(words) {
  return words.reduce((sum, one) => sum + one.bits, 0);
}

export function readings(panel) {
  if (!panel.words.length) return element("p", { class: "small" }, "The caption has no words.");
  if (!panel.adapters.length) {
    return element("p", { class: "small" }, "This interface has no adapters: its brain tokens are placed before the text.");
  }
  const box = element("details", {}, element("summary", {}, "Brain tokens that each word attends to"));
  for (const adapter of panel.adapters) {
    const most = Math.max(...adapter.weights.flat());
    const part = element("div", { class: "reading" }, element("p", {},
      `After layer ${adapter.layer}, open by ${signed(adapter.openness, 2)}; ` +
      `${adapter.weights[0].length} brain tokens, darkest ${(100 * most).toFixed(0)} %`));
    adapter.weights.forEach((weights, row) => part.append(readingRow(panel.words[row].word, weights, most)));
    box.append(part);
  }
  return box;
}

function readingRow(word, weights, most) {
  const best = weights.map((weight, token) => [weight, token]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const said = best.map(([weight, token]) => `${token + 1} (${(100 * weight).toFixed(0)} %)`).join(", ");
  const cells = element("span", { class: "cells", role: "img", "aria-label": `${word}: mostly brain tokens ${said}`, title: said });
  for (const weight of weights) {
    const cell = element("span");
    cell.style.background = `rgba(var(--more), ${(weight / most).toFixed(3)})`;
    cells.append(cell);
  }
  return element("div", { class: "row" }, element("span", {}, word), cells);
}

// Two views of the voxels: from above (left of the brain at the left) and from the right.
export function drawBrain(canvas, brain, values, region) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const [more, less] = ["--more", "--less"].map((name) => style.getPropertyValue(name));
  const inside = region ? new Set(brain.rois[region] ?? []) : null;
  const most = Math.max(1e-6, quantile(values.map(Math.abs), 0.98));
  views(brain, width, height).forEach(({ across, up, left, label, size }) => {
    pen.fillStyle = style.getPropertyValue("--soft");
    pen.font = "12px system-ui, sans-serif";
    pen.fillText(label, left + 4, 12);
    brain.shown.forEach((_, place) => {
      const [x, y] = [across(place), up(place)];
      const share = Math.min(Math.abs(values[place]) / most, 1);
      pen.fillStyle = `rgba(${values[place] < 0 ? less : more}, ${0.08 + 0.85 * share})`;
      pen.fillRect(x - size / 2, y - size / 2, size, size);
      if (inside?.has(place)) {
        pen.strokeStyle = style.getPropertyValue("--ink");
        pen.lineWidth = 0.8;
        pen.strokeRect(x - size / 2, y - size / 2, size, size);
      }
    });
  });
}

function views(brain, width, height) {
  const [x, y, z] = [brain.x_mm, brain.y_mm, brain.z_mm].map((axis) => ({ axis, low: Math.min(...axis), high: Math.max(...axis) }));
  const span = (one) => Math.max(one.high - one.low, 1);
  const gap = 18;
  const perMm = Math.min((width - gap) / (span(x) + span(y) + 12), (height - 26) / Math.max(span(y), span(z)));
  const size = Math.max(1.5, Math.min(4, 60 * perMm / Math.sqrt(brain.shown.length) * 4));
  const first = span(x) * perMm + size;
  const at = (one, start) => (place) => start + (one.axis[place] - one.low) * perMm;
  const over = (one) => (place) => 22 + (one.high - one.axis[place]) * perMm;
  return [
    { across: at(x, size), up: over(y), left: 0, label: "from above", size },
    { across: at(y, first + gap), up: over(z), left: first + gap - size, label: "from the right", size },
  ];
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(share * (sorted.length - 1))] ?? 0;
}
