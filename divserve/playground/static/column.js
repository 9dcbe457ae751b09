// A column: a method with its parameters, and the answer that it gives.

import { Answer, mean } from "./answer.js";
import { h } from "./dom.js";
import { about, shown, valueOf } from "./figures.js";
import { fieldsOf } from "./form.js";
import { PLAIN } from "./state.js";
import { tip } from "./tip.js";
import "./view.js";

const PLAIN_ABOUT = "The model's own answer, without a method.";
let count = 0;

/** Fires "change" when its method or a parameter changes, "remove" and "snippet" on request. */
export class AnswerColumn extends HTMLElement {
  #id = `column-${count++}`;
  #view = document.createElement("answer-view");
  #said = h("span", { role: "status" });
  // Not spoken: it changes with every token.
  #count = h("span", { "aria-hidden": "true" });
  #error = h("div", { class: "error", role: "alert" });
  #fields = h("div", { class: "parameters" });
  #about = h("p", { class: "purpose" });
  #means = h("dl", { class: "means" });
  #figure = "";
  #answer = null;

  /** @param column {method, parameters} of the state; changed by the form */
  constructor(column, methods) {
    super();
    this.column = column;
    this.methods = methods;
  }

  get method() {
    return this.methods.find(({ method }) => method === this.column.method);
  }

  get label() {
    return this.method?.title ?? "Plain";
  }

  connectedCallback() {
    const select = h("select", { id: this.#id, "data-place": "decoding.method" }, this.#options());
    select.value = this.column.method;
    select.addEventListener("change", () => {
      this.column.method = select.value;
      this.column.parameters = {};
      this.#describe();
      this.#fire("change");
    });
    const button = (text, label, event) => h("button", {
      type: "button", class: "text-button", "aria-label": label, onclick: () => this.#fire(event),
    }, text);
    this.append(
      h("header", { class: "column-head" },
        h("label", { class: "visually-hidden", for: this.#id }, "Method"), select,
        button("×", "Remove this column", "remove")),
      this.#about, this.#fields,
      h("p", { class: "status quiet" }, this.#said, this.#count),
      h("div", { class: "answer" }, this.#view, this.#error),
      h("footer", { class: "column-foot" }, this.#means, button("Copy as code", null, "snippet")));
    this.#describe();
    this.clear();
  }

  #options() {
    const entries = this.methods.map(({ method, title, available, needs }) => h("option",
      { value: method, disabled: !available }, available ? `${method} · ${title}` : `${method}: ${needs}`));
    return [h("option", { value: PLAIN }, "plain · no method"), ...entries];
  }

  #describe() {
    const { method } = this;
    this.#about.replaceChildren(method?.summary ?? PLAIN_ABOUT);
    if (method) {
      const words = `${method.paper}. It needs ${method.needs}. Formula: ${method.formula}`;
      this.#about.append(" ", tip(`About ${method.title}`, words));
    }
    const changed = () => this.#fire("change");
    this.#fields.replaceChildren(...(method
      ? fieldsOf(method.parameters, this.column.parameters, this.#id, changed) : []));
  }

  #fire(name) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true }));
  }

  clear() {
    this.#view.begin(`Answer, ${this.label}`, 0);
    this.#means.replaceChildren();
    this.#error.replaceChildren();
    this.#say("Not run yet.");
  }

  /** Shows the answer of a request as it comes; ends normally on errors too, which it shows. */
  async run(api, body, lacks, signal) {
    const started = performance.now();
    const answer = this.#answer = new Answer(Boolean(body.decoding));
    this.clear();
    this.#view.lacks = lacks;
    this.#view.begin(`Answer, ${this.label}`, body.max_tokens);
    this.#say("Waiting for the first token …");
    try {
      for await (const chunk of api.chat(body, signal)) {
        const fresh = answer.add(chunk);
        if (fresh.length) this.#view.add(fresh);
        this.#said.textContent = "";
        this.#count.textContent = `${answer.tokens.length} tokens …`;
      }
      const seconds = (performance.now() - started) / 1000;
      this.#say(ended(answer, seconds));
    } catch (error) {
      if (error.name === "AbortError") this.#say("Stopped.");
      else this.fail(error);
    }
    this.#view.end();
    this.#summarize();
  }

  #say(text) {
    this.#said.textContent = text;
    this.#count.textContent = "";
  }

  /** Shows an error, with the field that it is about. */
  fail(error) {
    const known = error.place ? this.#fieldOf(error.place) : null;
    this.#say("No answer.");
    this.#error.replaceChildren(h("p", {}, error.message), error.place ? h("p", { class: "small" },
      "Field: ", known ? h("button", { type: "button", class: "link", onclick: () => known.focus() },
        error.place) : h("code", {}, error.place)) : "");
    known?.setAttribute("aria-invalid", "true");
    known?.addEventListener("input", () => known.removeAttribute("aria-invalid"), { once: true });
  }

  // "decoding.guide.without" is about the document, whatever comes after the guide.
  #fieldOf(place) {
    const at = place.replace(/^messages.*/, "prompt").replace(/^decoding\.guide.*/, "document")
      .replace(/^decoding\.trace.*/, "top").replace(/^max_.*/, "max_tokens");
    const selector = `[data-place="${CSS.escape(at)}"]`;
    return this.querySelector(selector) ?? document.querySelector(selector);
  }

  colour(figure) {
    this.#figure = figure;
    this.#view.colour(figure);
    this.#summarize();
  }

  #summarize() {
    const tokens = this.#answer?.tokens ?? [];
    const value = mean(tokens.map((token) => valueOf(token, this.#figure)));
    const { label } = about(this.#figure);
    const name = label[0].toLowerCase() + label.slice(1);
    this.#means.replaceChildren(...(tokens.length ? [h("dt", {}, `Mean ${name}`),
      h("dd", {}, value === null ? "not reported" : shownMean(this.#figure, value))] : []));
  }
}

function shownMean(name, value) {
  return about(name).words ? value.toFixed(2) : shown(name, value);
}

function ended({ tokens, finish, summary }, seconds) {
  const why = { stop: "complete", length: "cut at the limit of tokens" }[finish] ?? finish;
  const steps = summary ? `, the method applied to ${summary.applied_steps}` : "";
  return `${tokens.length} tokens${steps} · ${why} · ${seconds.toFixed(1)} s`;
}

customElements.define("answer-column", AnswerColumn);
