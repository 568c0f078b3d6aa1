// What the parts of the skills manager share: the shown skill, requests with the admin key, refusals and questions.
import { html } from "/admin/charts.js";

const KEY = "secateur-admin-key"; // the admin page keeps it there
const ROLES = ["viewer", "editor", "publisher", "operator"];

/** The shown skill with its revisions; the unsaved texts by skill; whether this page may change anything, and who reads. */
export const view = { open: undefined, base: 0, drafts: new Map(), editing: false, role: "viewer" };

export const find = (id) => document.getElementById(id);

/** Whether the reader has at least this role. */
export const may = (role) => ROLES.indexOf(view.role) >= ROLES.indexOf(role);

/** The answer to a GET, or to a POST of `body` as JSON or of a file's bytes; throws a refusal with its message. */
export async function ask(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const raw = body instanceof Blob;
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && !raw && { "Content-Type": "application/json" }) };
  const sent = { method: body ? "POST" : "GET", headers, body: raw ? body : body && JSON.stringify(body), signal };
  const answer = await fetch(path, sent).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Your text is still here; try again.");
  });
  if (answer.ok) return answer;
  const { error } = await answer.json();
  throw Object.assign(new Error(answer.status === 401 ? "Sign in, or give the admin key, on the page Usage." : error.message), error);
}

export const read = async (path, body) => (await ask(path, body)).json();

/** The path of an action of the shown skill. */
export const at = (action = "") => `/admin/skills/${encodeURIComponent(view.open.name)}${action && `/${action}`}`;

/** Run what a click asks for; a refusal is shown and nothing else happens. */
export async function attempt(work) {
  find("trouble").hidden = true;
  try {
    await work();
  } catch (error) {
    find("trouble-text").replaceChildren(...rich(error.message));
    find("trouble").hidden = false;
  }
}

/** Replace the content of an element; the focus stays on the control of the same name, else goes to `otherwise`. */
export function redraw(element, nodes, otherwise) {
  const name = (one) => one.getAttribute("aria-label") ?? one.dataset.name ?? one.textContent;
  const focused = element.contains(document.activeElement) ? name(document.activeElement) : undefined;
  element.replaceChildren(...nodes);
  if (focused === undefined) return;
  const same = [...element.querySelectorAll("button, summary")].find((one) => name(one) === focused);
  (same ?? otherwise)?.focus({ preventScroll: true });
}

/** Ask a question with two answers; resolves to whether the first was chosen. */
export function sure(question, yes) {
  const dialog = find("sure");
  find("sure-text").textContent = question;
  find("sure-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** A text whose parts between backticks are code, as nodes. */
export const rich = (text) => text.split("`").map((part, index) => (index % 2 ? html("code", {}, part) : part));

/** `2026-12-01 08:30` of a moment in ISO 8601 or in seconds since 1970; UTC. */
export const moment = (when) => new Date(typeof when === "number" ? 1000 * when : when).toISOString().slice(0, 16).replace("T", " ");

for (const [id, from] of [["copy", "line"], ["copy-curl", "curl"], ["secret-copy", "secret-text"]]) {
  find(id).addEventListener("click", ({ currentTarget: button }) => attempt(async () => {
    const text = button.textContent;
    await navigator.clipboard.writeText(find(from).textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = text), 1500);
  }));
}
find("trouble-close").addEventListener("click", () => {
  find("trouble").hidden = true;
});
find("sure").addEventListener("click", (event) => {
  if (event.target.value !== undefined) find("sure").close(event.target.value);
});
