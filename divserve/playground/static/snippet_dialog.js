// The dialog that shows a request as code.

import { BASE } from "./api.js";
import { h } from "./dom.js";
import { snippets } from "./snippets.js";

const $ = (id) => document.getElementById(id);

/** Opens the dialog for a request's body. */
export function show(body, keyed) {
  const codes = snippets(String(BASE), body, keyed);
  const buttons = Object.keys(codes).map((kind) => h("button", {
    type: "button", onclick: () => choose(kind),
  }, kind));
  const choose = (kind) => {
    buttons.forEach((button) => button.setAttribute("aria-pressed", button.textContent === kind));
    $("snippet-code").textContent = codes[kind];
    $("snippet-said").textContent = keyed ? "The key is read from DIVSERVE_API_KEY." : "";
  };
  $("snippet-kinds").replaceChildren(...buttons);
  choose("curl");
  $("snippet").showModal();
}

/** Makes the dialog's buttons work. */
export function install() {
  $("snippet-close").addEventListener("click", () => $("snippet").close());
  $("snippet-copy").addEventListener("click", async () => {
    $("snippet-said").textContent = await copy($("snippet-code").textContent)
      ? "Copied." : "The browser allows no copying here: select the code and copy it.";
  });
}

/** Copies a text; false where the browser refuses, as on pages without TLS. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
