// Keys, documents, and what visitors said of the shown skill; each part is read when it is opened.
import { html } from "/admin/charts.js";
import { ask, at, attempt, find, may, moment, read, redraw, sure, view } from "/admin/manager/client.js";
import { insert } from "/admin/manager/editor.js";

const POLL = 1000;
const PARTS = { keys: showKeys, knowledge: showKnowledge, said: showSaid, conversations: showConversations };
let timer;
let keyOf; // the skill whose new key is shown

/** Read the open parts again, for the skill that is shown now. */
export function refresh() {
  clearTimeout(timer);
  for (const [id, show] of Object.entries(PARTS)) if (find(id).open) attempt(show);
  if (keyOf !== view.open.name) find("secret").hidden = true;
  find("uploaded").textContent = "";
}

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${Number((bytes / 1e6).toFixed(1))} MB`);
const none = (text, kind = "li") => [html(kind, { class: "aside" }, text)];
const summary = (id) => find(id).querySelector("summary");

function button(text, label, work) {
  const made = html("button", { "aria-label": label }, text);
  made.addEventListener("click", () => attempt(work));
  return made;
}

async function showKeys() {
  if (!view.open.served) {
    find("key-form").hidden = true;
    return find("keys-list").replaceChildren(...none("Publish the skill first: a key opens what is served."));
  }
  const { file, keys } = await read(at("keys"));
  find("key-form").hidden = !file || !may("operator");
  const rows = keys.map((key) => html("li", { class: key.state }, html("div", {}, html("code", {}, key.id), ` ${key.note || "no note"}`, html("small", {}, lifetime(key))),
    ...(key.state === "valid" && may("operator") ? [button("Revoke", `Revoke the key ${key.id}`, () => revoke(key))] : [])));
  const empty = file ? "No key opens this skill yet." : "This server has no file of keys: set keys = \"keys.json\" in server.toml.";
  redraw(find("keys-list"), rows.length ? rows : none(empty), summary("keys"));
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
  keyOf = view.open.name;
  find("key-form").reset();
  find("secret-copy").focus();
  await showKeys();
}

async function revoke(key) {
  if (!(await sure(`Refuse the key ${key.id} (${key.note || key.opens}) from now on? This cannot be undone.`, "Revoke it"))) return;
  await read(at("keys/revoke"), { id: key.id });
  await showKeys();
}

async function showKnowledge() {
  const name = view.open.name;
  const found = await read(at("knowledge"));
  if (name !== view.open.name) return;
  const { documents, built, build, limits } = found;
  find("upload-form").hidden = find("build").hidden = find("upload-limits").hidden = !view.editing;
  find("upload-limits").textContent = `${limits.suffixes.join(", ")}; at most ${size(limits.bytes)} each and ${limits.documents} documents.`;
  find("upload").setAttribute("accept", limits.suffixes.join(","));
  const rows = documents.map((one) => html("li", {}, html("div", {}, one.name, html("small", {}, size(one.bytes))),
    ...(view.editing ? [button("Delete", `Delete ${one.name}`, () => remove(one.name))] : [])));
  redraw(find("documents"), rows.length ? rows : none("No document yet. Replies then come from the model and its prompt alone."), summary("knowledge"));
  const busy = build && build.code === null;
  find("build").disabled = Boolean(busy) || !documents.length;
  find("built").replaceChildren(...outcome(build, built));
  clearTimeout(timer);
  if (busy) timer = setTimeout(() => attempt(showKnowledge), POLL);
}

function outcome(build, built) {
  if (build?.code === null) return [html("progress", { "aria-label": "Building" }), html("p", { class: "aside" }, `${build.line || "Reading the documents"} (${Math.round(build.seconds)} s)`)];
  if (build?.code) return [html("p", { class: "problem bad" }, `The build failed: ${build.line}`)];
  const latest = built.at(-1);
  if (!latest) return [];
  const used = find("text").value.includes(JSON.stringify(latest.reference));
  const said = html("p", { class: "aside" }, `${build ? `${build.line}. ` : ""}${used ? "The text above names" : "Not in use yet: the text does not name"} the latest build, ${latest.name}.`);
  const use = () => {
    insert("knowledge", JSON.stringify(latest.reference), true);
    return showKnowledge();
  };
  return used || !view.editing ? [said] : [said, button("Put it into the text", "Put it into the text, the latest build", use)];
}

async function upload(files = [...find("upload").files]) {
  for (const [index, file] of files.entries()) {
    find("uploaded").textContent = `Sending ${index + 1} of ${files.length}`;
    await ask(`${at("knowledge/upload")}?name=${encodeURIComponent(file.name)}`, file);
  }
  find("uploaded").textContent = files.length === 1 ? "1 document sent." : `${files.length} documents sent.`;
  find("upload-form").reset();
  await showKnowledge();
}

async function remove(name) {
  if (!(await sure(`Delete ${name}? What was built from it stays.`, "Delete it"))) return;
  await read(at("knowledge/delete"), { name });
  await showKnowledge();
}

async function showSaid() {
  const { name } = view.open;
  const [{ ratings }, { questions }] = await Promise.all([read(`/admin/feedback?skill=${encodeURIComponent(view.open.name)}&limit=50`), read(at("questions"))]);
  if (name !== view.open.name) return;
  const rated = ratings.map((one) => html("li", {}, html("div", {}, html("b", { class: one.rating }, one.rating === "up" ? "Good" : "Bad"), ` ${one.comment || "no comment"}`,
    html("small", {}, [moment(one.at), ...one.reasons].join(", ")))));
  find("ratings").replaceChildren(...(rated.length ? rated : none("Nobody has given a reason or a comment.")));
  const asked = questions.map((one) => html("li", {}, html("div", {}, one.text, html("small", {}, `${one.why}, ${one.times === 1 ? "once" : `${one.times} times`}, last ${moment(one.last)}`))));
  find("questions").replaceChildren(...(asked.length ? asked : none("None is kept. A skill with keep_questions = true keeps questions that are refused or rated down.")));
}

async function showConversations() {
  find("conversations-list").replaceChildren();
  if (!may("operator")) return find("conversations-list").replaceChildren(...none(`They are for operators; your role is ${view.role}.`, "p"));
  const { conversations } = await read(at("conversations"));
  const rows = conversations.map((one) => html("details", {}, html("summary", {}, one.turns[0]?.question.slice(0, 80) ?? "No question", html("small", {}, `${moment(one.last_message)}, ${one.turns.length === 1 ? "1 question" : `${one.turns.length} questions`}`)),
    ...one.turns.flatMap((turn) => [html("p", { class: "turn user" }, turn.question), html("p", { class: "turn assistant" }, turn.text,
      html("span", { class: "numbers" }, [turn.finish ? `ended by ${turn.finish}` : "still going on", turn.rating && `rated ${turn.rating}`, turn.comment].filter(Boolean).join(", ")))])));
  find("conversations-list").replaceChildren(...(rows.length ? rows : none("No conversation is kept of this skill.", "p")));
}

for (const [id, show] of Object.entries(PARTS)) find(id).addEventListener("toggle", () => find(id).open && view.open && attempt(show));
const on = (id, work) => find(id).addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(work);
});
on("key-form", create);
on("upload-form", () => upload());
find("build").addEventListener("click", () => attempt(async () => {
  await read(at("knowledge/build"), {});
  await showKnowledge();
}));
find("secret-done").addEventListener("click", () => {
  find("secret-text").textContent = "";
  find("secret").hidden = true;
  find("key-note").focus();
});
find("knowledge").addEventListener("dragover", (event) => view.editing && event.preventDefault());
find("knowledge").addEventListener("drop", (event) => {
  if (!view.editing || !event.dataTransfer.files.length) return;
  event.preventDefault();
  attempt(() => upload([...event.dataTransfer.files]));
});
