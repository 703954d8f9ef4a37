// Questions about a trial: the turns with their answers, and the questions that the store has about the image.
import { element, signed, total, wordList } from "/drawing.js";

export const MOST_TURNS = 12;
export const LONGEST_QUESTION = 300;
const TITLES = {
  real: "These betas", perturbed: "These betas, changed", control: "Control: another image's betas", alone: "Control: language model alone",
};

export class Conversation {
  constructor(list) {
    this.list = list;
    this.questions = [];
    this.turns = [];
  }

  // The URL's questions, or a new one; the oldest stay.
  add(...questions) {
    const asked = questions.map((text) => text.trim().slice(0, LONGEST_QUESTION)).filter(Boolean);
    const added = asked.slice(0, MOST_TURNS - this.questions.length);
    this.questions.push(...added);
    return added.length === asked.length;
  }

  clear() {
    this.questions = [];
    this.begin();
  }

  // Empty boxes for the answers that are about to come.
  begin() {
    this.turns = this.questions.map((question) => {
      const truth = element("p", { class: "small" });
      const box = element("div", { class: "panels" });
      const item = element("li", { class: "turn" }, element("h3", {}, question), truth, box);
      return { question, truth, box, item, answers: {} };
    });
    this.list.replaceChildren(...this.turns.map((turn) => turn.item));
  }

  body(event) {
    const turn = this.turns[event.turn];
    turn.answers[event.panel] ??= {};
    const answer = turn.answers[event.panel];
    if (!answer.body) {
      answer.body = element("div");
      turn.box.append(element("article", { class: `panel ${event.panel === "alone" ? "control" : event.panel}`, "data-answer": event.panel },
        element("h4", {}, TITLES[event.panel]), answer.body));
    }
    return answer;
  }

  write(event) {
    this.body(event).body.replaceChildren(element("p", { class: "writing" }, event.text || "…"));
  }

  show(event) {
    const answer = this.body(event);
    answer.told = event;
    const words = event.words.length ? [wordList(event.words)] : [element("p", { class: "answer" }, event.answer || "(no words)")];
    const right = event.is_right === null ? "" : event.is_right ? "Right. " : "Wrong. ";
    const bits = event.words.length ? `, ${signed(total(event.words))} bits from the unchanged betas` : "";
    answer.body.replaceChildren(...words, element("p", { class: "total" }, `${right}Probability ${event.probability.toFixed(2)}${bits}.`));
    if (event.accepted.length) this.turns[event.turn].truth.textContent = `True answer: ${[...new Set(event.accepted)].join(", ")}`;
  }

  // One sentence for the screen reader.
  summary() {
    const turn = this.turns.at(-1);
    const said = (name) => turn.answers[name]?.told?.answer || "no words";
    const changed = turn.answers.perturbed ? `, with the changed betas: ${said("perturbed")}` : "";
    return `${turn.question} These betas: ${said("real")}${changed}; another image's betas: ${said("control")}; language model alone: ${said("alone")}.`;
  }
}

// The store's questions about the image as buttons, each with its true answer.
export function suggestions(found, ask) {
  if (!found.total) return [element("p", { class: "small" }, "The store has no questions about this image; ask your own.")];
  const items = found.exchanges.map(({ task, questions, answers }) => {
    const button = element("button", { type: "button" }, questions.join(" "));
    button.addEventListener("click", () => ask(questions));
    const truth = answers.map((accepted) => [...new Set(accepted)].slice(0, 3).join(", ")).join("; ");
    return element("li", {}, button, element("span", { class: "small" }, ` ${task}; true answer: ${truth}`));
  });
  const more = found.total > found.exchanges.length ? `, the first ${found.exchanges.length}` : "";
  return [element("details", {}, element("summary", {}, `Questions about this image in the store (${found.total}${more})`),
    element("ul", { class: "suggested" }, ...items))];
}
