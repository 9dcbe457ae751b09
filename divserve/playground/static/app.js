// The page: state, columns and runs.

import { Api } from "./api.js";
import { AnswerColumn } from "./column.js";
import { cards, examples } from "./gallery.js";
import { figureTip, legend, offer } from "./legend.js";
import { bodyOf, lacking } from "./request.js";
import * as dialog from "./snippet_dialog.js";
import { column, decode, encode, MOST_COLUMNS } from "./state.js";
import { tip } from "./tip.js";
import { TIPS } from "./words.js";
import "./card.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["prompt", "document", "system", "tokens", "temperature", "seed", "top"];
const NUMBERS = ["tokens", "temperature", "seed", "top"];
const api = new Api();
let state = decode(location.hash);
let methods = [];
let model = "";
let running = null;

async function connect() {
  try {
    const [models, list] = await Promise.all([api.list("/models"), api.list("/decoding/methods")]);
    model = models[0].id;
    $("server").textContent = model;
    $("key").removeAttribute("aria-invalid");
    // Another key changes no method: answers on the page stay.
    if (JSON.stringify(list) !== JSON.stringify(methods)) {
      methods = list;
      apply(state);
    }
  } catch (error) {
    $("server").textContent = error.message;
    if (error.place === "key") {
      $("key").setAttribute("aria-invalid", "true");
      $("key").focus();
    }
  }
  $("run").disabled = !model;
}

/** Shows a state: fields, columns, colours. */
function apply(next) {
  stop();
  state = next;
  for (const name of FIELDS) $(name).value = state[name];
  $("settings").open ||= Boolean(state.system);
  $("columns").replaceChildren(...state.columns.map((each) => new AnswerColumn(each, methods)));
  refresh();
}

/** What follows from the columns: the figures to colour by, the fragment, the buttons. */
function refresh() {
  const used = columns().map(({ method }) => method).filter(Boolean);
  state.columns = columns().map((element) => element.column);
  paint(offer($("colour"), used, state.colour), false);
  $("columns").style.setProperty("--count", state.columns.length);
  $("add").disabled = state.columns.length >= MOST_COLUMNS;
  columns().forEach((each) => each.toggleAttribute("data-only", state.columns.length === 1));
  save();
}

function paint(figure, chosen = true) {
  if (chosen) state.colour = figure;
  $("colour-tip").replaceChildren(figureTip(figure));
  legend($("legend"), figure);
  columns().forEach((each) => each.colour(figure));
}

function columns() {
  return [...$("columns").children];
}

function save() {
  history.replaceState(null, "", `#${encode(state)}`);
}

function read() {
  for (const name of FIELDS) {
    const value = NUMBERS.includes(name) ? $(name).valueAsNumber : $(name).value;
    // An empty field keeps what it had.
    if (!Number.isNaN(value)) state[name] = value;
  }
  save();
}

async function run() {
  read();
  stop();
  const mine = running = new AbortController();
  $("stop").disabled = false;
  await Promise.all(columns().map(async (each) => {
    each.clear();
    let body;
    try {
      body = bodyOf(state, each.column, each.method, model);
    } catch (error) {
      each.fail(error);
      return;
    }
    await each.run(api, body, lacking(state, each.method), mine.signal);
  }));
  if (running === mine) $("stop").disabled = true;
}

function stop() {
  running?.abort();
  $("stop").disabled = true;
}

async function share() {
  read();
  $("said").textContent = await dialog.copy(location.href)
    ? "Link copied. It has no API key in it." : "Copy the address of this page.";
}

function listen() {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.key = $("key").value.trim();
    connect();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("composer").addEventListener("change", read);
  $("composer").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  $("stop").addEventListener("click", stop);
  $("share").addEventListener("click", share);
  $("add").addEventListener("click", () => {
    const unused = methods.find((each) => each.available &&
      !state.columns.some(({ method }) => method === each.method));
    $("columns").append(new AnswerColumn(column(unused?.method ?? "plain"), methods));
    refresh();
  });
  $("colour").addEventListener("change", () => {
    paint($("colour").value);
    save();
  });
  $("columns").addEventListener("change", refresh);
  $("columns").addEventListener("remove", (event) => {
    event.target.remove();
    refresh();
    $("add").focus();
  });
  $("columns").addEventListener("snippet", ({ target }) => {
    read();
    try {
      dialog.show(bodyOf(state, target.column, target.method, model), Boolean(api.key));
    } catch (error) {
      target.fail(error);
    }
  });
  addEventListener("hashchange", () => apply(decode(location.hash)));
}

async function start() {
  for (const holder of document.querySelectorAll("[data-tip]")) {
    const [label, text] = TIPS[holder.dataset.tip];
    holder.replaceWith(tip(label, text));
  }
  dialog.install();
  listen();
  $("gallery").append(...cards(await examples(), (next) => {
    apply(next);
    run();
  }));
  await connect();
}

start();
