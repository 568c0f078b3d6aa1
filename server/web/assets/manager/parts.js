// Keys, documents, and what visitors said of the shown skill; each part is read when it is opened.
import { html } from "/admin/charts.js";
import { ask, at, attempt, find, moment, read, view } from "/admin/manager/client.js";

const POLL = 1000;
const PARTS = { keys: showKeys, knowledge: showKnowledge, said: showSaid, conversations: showConversations };
let timer;

/** Read the open parts again, for the skill that is shown now. */
export function refresh() {
  clearTimeout(timer);
  for (const [id, show] of Object.entries(PARTS)) if (find(id).open) attempt(show);
  find("secret").hidden = true;
}

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${Number((bytes / 1e6).toFixed(1))} MB`);
const none = (text, kind = "li") => [html(kind, { class: "aside" }, text)];

function button(text, label, work) {
  const made = html("button", { "aria-label": label }, text);
  made.addEventListener("click", () => attempt(work));
  return made;
}

async function showKeys() {
  find("key-form").hidden = true;
  if (!view.open.served) return find("keys-list").replaceChildren(...none("Publish the skill first."));
  const { file, keys } = await read(at("keys"));
  find("key-form").hidden = !file;
  const rows = keys.map((key) => html("li", { class: key.state }, html("div", {}, html("code", {}, key.id), ` ${key.note || "no note"}`, html("small", {}, lifetime(key))),
    ...(key.state === "valid" ? [button("Revoke", `Revoke the key ${key.id}`, () => revoke(key))] : [])));
  const empty = file ? "No key opens this skill yet." : "This server has no file of keys: set keys = \"keys.json\" in server.toml.";
  find("keys-list").replaceChildren(...(rows.length ? rows : none(empty)));
}

function lifetime(key) {
  const ends = key.state === "revoked" ? `revoked ${key.revoked.slice(0, 10)}` : key.expires ? `${key.state === "expired" ? "expired" : "expires"} ${key.expires.slice(0, 10)}` : "never expires";
  return [`made ${key.created.slice(0, 10)}, ${ends}`, key.opens !== view.open.name && `opens ${key.opens}`, key.limits].filter(Boolean).join(", ");
}

async function create() {
  const days = Number(find("key-days").value);
  const made = await read(at("keys/create"), { note: find("key-note").value, ...(days && { days }) });
  find("secret-text").textContent = made.key;
  find("secret").hidden = false;
  find("key-note").value = "";
  await showKeys();
}

async function revoke(key) {
  if (!confirm(`Refuse the key ${key.id} (${key.note || key.opens}) from now on?`)) return;
  await read(at("keys/revoke"), { id: key.id });
  await showKeys();
}

async function showKnowledge() {
  const name = view.open.name;
  const found = await read(at("knowledge"));
  if (name !== view.open.name) return;
  const { documents, built, build, limits } = found;
  find("upload-form").hidden = find("build").hidden = !view.editing;
  find("upload-limits").textContent = `${limits.suffixes.join(", ")}; at most ${size(limits.bytes)} each and ${limits.documents} documents.`;
  find("upload").setAttribute("accept", limits.suffixes.join(","));
  const rows = documents.map((one) => html("li", {}, html("div", {}, one.name, html("small", {}, size(one.bytes))),
    ...(view.editing ? [button("Delete", `Delete ${one.name}`, () => remove(one.name))] : [])));
  find("documents").replaceChildren(...(rows.length ? rows : none("No document yet.")));
  const busy = build && build.code === null;
  find("build").disabled = Boolean(busy) || !documents.length;
  find("built").replaceChildren(...outcome(build, built));
  clearTimeout(timer);
  if (busy) timer = setTimeout(() => attempt(showKnowledge), POLL);
}

function outcome(build, built) {
  if (build?.code === null) return [html("progress", { "aria-label": "Building" }), html("p", { class: "aside" }, `${build.line || "Starting"} (${Math.round(build.seconds)} s)`)];
  if (build?.code) return [html("p", { class: "problem bad" }, `The build failed: ${build.line}`)];
  if (!built.length) return [];
  const line = `knowledge = "${built.at(-1)}"`;
  const used = find("text").value.includes(line);
  const said = html("p", { class: "aside" }, `${build ? `${build.line}. ` : ""}${used ? "The text names the latest build." : "The latest build, for the text: "}`);
  if (used || !view.editing) return [said];
  return [said, html("code", { class: "block" }, line), button("Put it into the text", "Put the latest build into the text", () => insert(line))];
}

/** Name a build in the text: in place of the line that names another, else before the first table. */
function insert(line) {
  const text = find("text").value;
  const own = /^knowledge *=.*$/m;
  const table = text.search(/^\[/m);
  const added = table < 0 ? `${text.trimEnd()}\n${line}\n` : `${text.slice(0, table)}${line}\n\n${text.slice(table)}`;
  find("text").value = own.test(text) ? text.replace(own, () => line) : added;
  find("text").dispatchEvent(new Event("input"));
  find("text").focus();
  return showKnowledge();
}

async function upload() {
  const files = [...find("upload").files];
  for (const [index, file] of files.entries()) {
    find("uploaded").textContent = `Sending ${index + 1} of ${files.length}`;
    await ask(`${at("knowledge/upload")}?name=${encodeURIComponent(file.name)}`, file);
  }
  find("uploaded").textContent = files.length === 1 ? "1 document sent." : `${files.length} documents sent.`;
  find("upload-form").reset();
  await showKnowledge();
}

async function remove(name) {
  await read(at("knowledge/delete"), { name });
  await showKnowledge();
}

async function showSaid() {
  const [{ ratings }, { questions }] = await Promise.all([read(`/admin/feedback?skill=${encodeURIComponent(view.open.name)}&limit=50`), read(at("questions"))]);
  const rated = ratings.map((one) => html("li", {}, html("div", {}, html("b", { class: one.rating }, one.rating === "up" ? "Good" : "Bad"), ` ${one.comment || "no comment"}`,
    html("small", {}, [moment(one.at), ...one.reasons].join(", ")))));
  find("ratings").replaceChildren(...(rated.length ? rated : none("Nobody has given a reason or a comment.")));
  const asked = questions.map((one) => html("li", {}, html("div", {}, one.text, html("small", {}, `${one.why}, ${one.times === 1 ? "once" : `${one.times} times`}, last ${moment(one.last)}`))));
  find("questions").replaceChildren(...(asked.length ? asked : none("None is kept. Set keep_questions = true to keep those that are refused or rated down.")));
}

async function showConversations() {
  find("conversations-list").replaceChildren();
  const { conversations } = await read(at("conversations"));
  const rows = conversations.map((one) => html("details", {}, html("summary", {}, one.turns[0]?.question.slice(0, 80) ?? "No question", html("small", {}, `${moment(one.last_message)}, ${one.turns.length === 1 ? "1 question" : `${one.turns.length} questions`}`)),
    ...one.turns.flatMap((turn) => [html("p", { class: "turn user" }, turn.question), html("p", { class: "turn assistant" }, turn.text,
      html("span", { class: "numbers" }, [`ended by ${turn.finish ?? "nothing yet"}`, turn.rating && `rated ${turn.rating}`, turn.comment].filter(Boolean).join(", ")))])));
  find("conversations-list").replaceChildren(...(rows.length ? rows : none("None is kept.", "p")));
}

for (const [id, show] of Object.entries(PARTS)) find(id).addEventListener("toggle", () => find(id).open && view.open && attempt(show));
const on = (id, work) => find(id).addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(work);
});
on("key-form", create);
on("upload-form", upload);
find("build").addEventListener("click", () => attempt(async () => {
  await read(at("knowledge/build"), {});
  await showKnowledge();
}));
find("secret-copy").addEventListener("click", () => navigator.clipboard.writeText(find("secret-text").textContent));
find("secret-done").addEventListener("click", () => {
  find("secret-text").textContent = "";
  find("secret").hidden = true;
  find("key-note").focus();
});
