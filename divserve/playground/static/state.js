// What a page is set to, and its form in the URL's fragment. The API key is never part of it.

export const MOST_COLUMNS = 4;
export const PLAIN = "plain";

const TEXTS = ["prompt", "document", "system", "colour"];
const NUMBERS = { tokens: [1, 4096], temperature: [0, 2], seed: [0, 2 ** 31], top: [0, 20] };

/** The page as it first opens: the Eiffel Tower of the README. */
export function initial() {
  return {
    prompt: "Where does the Eiffel Tower stand?",
    document: "Note: the company moved. The Eiffel Tower now stands in Berlin.",
    system: "",
    colour: "kl",
    tokens: 60,
    temperature: 0,
    seed: 1,
    top: 5,
    columns: [column(PLAIN), column("adacad")],
  };
}

/** A column: a method and those of its parameters that were set. */
export function column(method, parameters = {}) {
  return { method, parameters };
}

/** The fragment (without "#") of a state. */
export function encode(state) {
  const out = new URLSearchParams();
  for (const name of [...TEXTS, ...Object.keys(NUMBERS)]) out.set(name, state[name]);
  for (const { method, parameters } of state.columns) {
    out.append("with", Object.keys(parameters).length
      ? `${method} ${JSON.stringify(parameters)}` : method);
  }
  return out.toString();
}

/** The state of a fragment; what is missing or wrong in it is as `initial` has it. */
export function decode(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = initial();
  if (given.has("prompt")) state.document = "";
  for (const name of TEXTS) if (given.has(name)) state[name] = given.get(name);
  for (const [name, [least, most]] of Object.entries(NUMBERS)) {
    const value = given.get(name)?.trim() ? Number(given.get(name)) : NaN;
    if (value >= least && value <= most) state[name] = value;
  }
  const columns = given.getAll("with").map(columnOf).filter(Boolean).slice(0, MOST_COLUMNS);
  if (columns.length) state.columns = columns;
  return state;
}

function columnOf(text) {
  const [, method, parameters] = text.match(/^([a-z_]+)(?: (\{.*\}))?$/s) ?? [];
  if (!method) return null;
  try {
    return column(method, parameters ? JSON.parse(parameters) : {});
  } catch {
    return null;
  }
}
