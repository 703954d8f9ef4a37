// The page: choices in the form and in the address, decodes as they are told by the server.
import { Conversation, suggestions } from "/conversation.js";
import { drawBrain, element, lostWords, readings, signed, total, wordList } from "/drawing.js";

const USES = { test: "never seen in training", validation: "used for choices", train: "trained on", unused: "not used" };
const TITLES = { real: "These betas", perturbed: "These betas, changed", control: "Control: another image's betas" };
const ORDER = ["real", "perturbed", "control"];
const MOST_IMAGES = 1000;
const GONE = "The server does not answer; is bitllm explore still running?";

const form = document.getElementById("ask");
const field = form.elements;
const status = document.getElementById("status");
const asking = document.getElementById("asking");
const conversation = new Conversation(document.getElementById("turns"));
let run, images = [], brains = {}, shownBetas = null, running = [];

function say(text, isProblem = false) {
  status.textContent = text;
  status.classList.toggle("problem", isProblem);
}

async function get(address, options) {
  const answer = await fetch(address, options).catch(() => {
    throw new Error(GONE);
  });
  const content = await answer.json();
  if (!answer.ok) throw new Error(typeof content.detail === "string" ? content.detail : `refused (${answer.status})`);
  return content;
}

function fill(select, options, wanted) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  if (options.some(([value]) => String(value) === wanted)) select.value = wanted;
}

function state() {
  return Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
}

function keepState() {
  const address = new URLSearchParams(state());
  for (const question of conversation.questions) address.append("q", question);
  history.replaceState(null, "", `?${address}`);
}

function subject() {
  return run.subjects.find((one) => one.name === field.subject.value);
}

function image() {
  return images.find((one) => String(one.nsd_id) === field.image.value);
}

function showFields() {
  for (const label of form.querySelectorAll("[data-for]")) {
    const isUsed = label.dataset.for.split(" ").includes(field.perturbation.value);
    label.hidden = !isUsed;
    for (const input of label.querySelectorAll("input, select")) input.disabled = !isUsed;
  }
}

async function choose(wanted) {
  const one = subject();
  fill(field.use, Object.keys(USES).filter((use) => one.n_images[use]).map((use) => [use, `${USES[use]} (${one.n_images[use]})`]), wanted.use);
  fill(field.roi, one.rois.map((roi) => [roi.name, `${roi.name} (${roi.n_voxels} voxels)`]), wanted.roi);
  await chooseImages(wanted);
  brains[one.name] ??= await get(`/api/subjects/${one.name}/brain`);
}

async function chooseImages(wanted) {
  const found = await get(`/api/subjects/${field.subject.value}/images?use=${field.use.value}&limit=${MOST_IMAGES}`);
  images = found.images;
  fill(field.image, images.map((one) => [one.nsd_id, `${one.nsd_id}: ${one.references[0] ?? ""}`.slice(0, 70)]), wanted.image);
  if (found.total > images.length) say(`The first ${images.length} of ${found.total} images can be chosen.`);
  chooseTrials(wanted);
}

function chooseTrials(wanted = {}) {
  const n = image()?.n_repetitions ?? 0;
  const single = Array.from({ length: n }, (_, place) => [place + 1, `repetition ${place + 1} alone`]);
  fill(field.repetition, [["", n > 1 ? `mean of ${n} repetitions` : "the only one"], ...(n > 1 ? single : [])], wanted.repetition);
  showSeen();
}

function showSeen() {
  const one = image();
  const place = document.getElementById("picture");
  if (!one) return place.replaceChildren();
  const said = one.references[0] ? `, of which a person said: ${one.references[0]}` : "";
  place.replaceChildren(run.has_pictures
    ? element("img", { src: `/api/pictures/${one.nsd_id}`, alt: `Image ${one.nsd_id}${said}` })
    : element("p", {}, "The store has no images."));
  document.getElementById("references").replaceChildren(...one.references.map((text) => element("li", {}, text)));
  const who = subject().is_trained_on ? "trained on" : "never trained on";
  document.getElementById("known").textContent = `${subject().name}: ${who}. This image: ${USES[field.use.value]}.`;
  shownBetas = null;
  showBrain();
  suggest(one.nsd_id);
}

async function suggest(nsdId) {
  const found = await get(`/api/images/${nsdId}/questions`).catch(() => null);
  if (!found || image()?.nsd_id !== nsdId) return; // another image was chosen meanwhile
  document.getElementById("suggested").replaceChildren(...suggestions(found, ask));
}

function ask(questions) {
  if (!conversation.add(...questions)) say("A conversation has at most 12 questions; clear them to ask others.", true);
  else decode();
}

function showBrain() {
  const brain = brains[field.subject.value];
  const canvas = document.getElementById("voxels");
  const text = document.getElementById("voxels-text");
  if (!brain || !shownBetas) {
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    text.textContent = "The input betas are shown after decoding.";
    return;
  }
  const region = ["silence", "alone"].includes(field.perturbation.value) ? field.roi.value : null;
  drawBrain(canvas, brain, shownBetas, region);
  const size = shownBetas.reduce((sum, value) => sum + Math.abs(value), 0) / shownBetas.length;
  const words = `Betas that went in: ${brain.n_voxels} voxels, mean size ${size.toFixed(2)} (z-scores); ` +
    `blue above 0, orange below${region ? `; outlined: ${region}` : ""}.`;
  text.textContent = words;
  canvas.setAttribute("aria-label", words);
}

function askOf(system) {
  const chosen = state();
  const ask = {
    system, subject: chosen.subject, nsd_id: Number(chosen.image), perturbation: chosen.perturbation,
    repetition: chosen.repetition ? Number(chosen.repetition) : null,
  };
  if (chosen.roi) ask.roi = chosen.roi;
  if (chosen.factor) ask.factor = Number(chosen.factor);
  if (chosen.seed) ask.seed = Number(chosen.seed);
  if (system === chosen.system) ask.questions = conversation.questions;
  return ask;
}

class Answer {
  // What is told about one decode, in a box of its own.
  constructor(system) {
    this.system = system;
    this.panels = {};
    this.box = element("div", { class: "panels" });
    const info = run.systems.find((one) => one.name === system);
    this.section = element("section", { class: "system", "aria-label": `Captions of ${system}` },
      element("h3", {}, `${system} (${info.interface})`), this.box);
  }

  place(name) {
    this.panels[name] ??= { body: element("div") , card: null };
    const panel = this.panels[name];
    panel.card ??= element("article", { class: `panel ${name}`, "data-panel": name }, element("h4", {}, TITLES[name]), panel.body);
    this.box.replaceChildren(...ORDER.filter((one) => this.panels[one]).map((one) => this.panels[one].card));
    return panel;
  }

  write(name, text) {
    this.place(name).body.replaceChildren(element("p", { class: "writing" }, text || "…"));
  }

  show(panel) {
    const kept = this.place(panel.panel);
    kept.told = panel;
    const before = panel.panel === "perturbed" ? this.panels.real?.told : undefined;
    kept.body.replaceChildren(
      panel.words.length ? wordList(panel.words, before?.words) : element("p", {}, "(no words)"),
      element("p", { class: "total" }, this.summary(panel, before)),
      ...(panel.lost?.length ? lostWords(panel.lost) : []), readings(panel));
  }

  summary(panel, before) {
    const bits = `${signed(total(panel.words))} bits`;
    if (panel.panel === "real") return `${bits} in all.`;
    const said = `${bits} for these words from the unchanged betas.`;
    if (!before) return said;
    return `${panel.caption === before.caption ? "The same words." : "Other words (outlined)."} ${said}`;
  }
}

function follow(job, answer) {
  return new Promise((resolve) => {
    const source = new EventSource(`/api/decodes/${job.id}/events`);
    const end = (text, isProblem) => {
      source.close();
      resolve({ text, isProblem });
    };
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.kind === "text") answer.write(event.panel, event.text);
      else if (event.kind === "panel") answer.show(event);
      else if (event.kind === "answer_text") conversation.write(event);
      else if (event.kind === "answer") conversation.show(event);
      else if (event.kind === "loading") say(`${event.system} is decoding …`);
      else if (event.kind === "betas") {
        shownBetas = event.values;
        showBrain();
      } else if (event.kind === "done") end("", false);
      else if (event.kind === "cancelled") end("Stopped.", false);
      else if (event.kind === "failed") end(event.message, true);
    };
    source.onerror = () => end(GONE, true);
  });
}

async function decode() {
  await stop();
  keepState();
  const systems = [...new Set([field.system.value, field.compare.value])].filter(Boolean);
  const answers = systems.map((system) => new Answer(system));
  document.getElementById("nothing").hidden = true;
  document.getElementById("decoded").replaceChildren(...answers.map((one) => one.section));
  conversation.begin();
  document.getElementById("clear").disabled = !conversation.questions.length;
  say("Waiting for earlier decodes …");
  const mine = [];
  running = mine;
  document.getElementById("stop").disabled = false;
  const ends = await Promise.all(answers.map(async (answer) => {
    try {
      const job = await get("/api/decodes", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(askOf(answer.system)),
      });
      mine.push(job);
      return await follow(job, answer);
    } catch (error) {
      return { text: error.message, isProblem: true };
    }
  }));
  if (running !== mine) return; // another decode was asked for meanwhile
  running = [];
  document.getElementById("stop").disabled = true;
  const bad = ends.find((one) => one.text);
  say(bad ? bad.text : conversation.questions.length ? conversation.summary() : "Decoded.", bad?.isProblem);
  // counts up at the very end, so that who waits for a decode (a test, a script) cannot miss it
  document.body.dataset.decodes = Number(document.body.dataset.decodes) + 1;
}

async function stop() {
  const jobs = running;
  running = [];
  await Promise.all(jobs.map((job) => fetch(`/api/decodes/${job.id}`, { method: "DELETE", keepalive: true })));
  document.getElementById("stop").disabled = true;
  if (jobs.length) say("Stopped.");
}

function listen() {
  form.addEventListener("change", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    decode();
  });
  asking.addEventListener("submit", (event) => {
    event.preventDefault();
    ask([asking.elements.question.value]);
    asking.elements.question.value = "";
  });
  document.getElementById("clear").addEventListener("click", () => {
    conversation.clear();
    document.getElementById("clear").disabled = true;
    asking.elements.question.focus();
    keepState();
  });
  document.getElementById("stop").addEventListener("click", stop);
  document.getElementById("next").addEventListener("click", () => {
    field.image.selectedIndex = (field.image.selectedIndex + 1) % images.length;
    chooseTrials();
    decode();
  });
  window.addEventListener("resize", showBrain);
  window.addEventListener("pagehide", stop);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showBrain);
}

function setReady(isReady) {
  const buttons = [form.querySelector("[type=submit]"), asking.querySelector("[type=submit]"), document.getElementById("next")];
  for (const button of buttons) button.disabled = !isReady;
}

async function start() {
  run = await get("/api/run");
  const address = new URLSearchParams(location.search);
  const wanted = Object.fromEntries(address);
  conversation.add(...address.getAll("q"));
  const what = run.data === "simulated" ? "simulated brain: nothing here says anything about real ones" : run.data;
  document.getElementById("about").textContent = `bitllm explore · ${run.run} · base LLM ${run.llm} · split ${run.split} · ${what}`;
  const systems = run.systems.map(({ name, interface: how, tasks }) => [name, `${name} (${how}${tasks.length ? ", questions" : ""})`]);
  fill(field.system, systems, wanted.system);
  fill(field.compare, [["", "nothing"], ...systems], wanted.compare);
  fill(field.subject, run.subjects.map((one) => [one.name, `${one.name}${one.is_trained_on ? ", trained on" : ", never trained on"}`]), wanted.subject);
  for (const name of ["perturbation", "factor", "seed"]) if (wanted[name]) field[name].value = wanted[name];
  if (!field.perturbation.value) field.perturbation.value = "none";
  showFields();
  await choose(wanted);
  setReady(true);
  if (image()) await decode();
  else keepState();
}

async function changed(event) {
  try {
    if (event.target === field.subject) await choose(state());
    else if (event.target === field.use) await chooseImages({});
    else if (event.target === field.image) chooseTrials();
    else if (event.target === field.perturbation) showFields();
    keepState();
  } catch (error) {
    say(error.message, true);
  }
}

listen();
start().catch((error) => say(error.message, true));
