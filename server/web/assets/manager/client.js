// What the parts of the skills manager share: the shown skill, requests with the admin key, and refusals.
const KEY = "secateur-admin-key"; // the admin page keeps it there

/** The shown skill with its revisions, and whether this page may change anything. */
export const view = { open: undefined, editing: false };

export const find = (id) => document.getElementById(id);

/** The answer to a GET, or to a POST of `body` as JSON or of a file's bytes; throws a refusal with its message. */
export async function ask(path, body) {
  const key = sessionStorage.getItem(KEY);
  const raw = body instanceof Blob;
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && !raw && { "Content-Type": "application/json" }) };
  const sent = { method: body ? "POST" : "GET", headers, body: raw ? body : body && JSON.stringify(body) };
  const answer = await fetch(path, sent).catch(() => Promise.reject(new Error("The server does not answer.")));
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
    find("trouble").textContent = error.message;
    find("trouble").hidden = false;
    find("trouble").scrollIntoView({ block: "nearest" });
  }
}

/** `2026-12-01 08:30` of a moment in ISO 8601 or in seconds since 1970; UTC. */
export const moment = (when) => new Date(typeof when === "number" ? 1000 * when : when).toISOString().slice(0, 16).replace("T", " ");
