// The editor of a skill's text: checked while typed, each field with its documentation, saved and published.
import { html } from "/admin/charts.js";
import { at, attempt, find, may, read, rich, sure, view } from "/admin/manager/client.js";

const CHECK_AFTER = 400;
const KNOWN = " known fields are ";
const OF_FILES = ["experiment", "system_file"]; // a revision holds neither
const TABLE = /^\s*\[+\s*[a-z_]+\s*\]/;
const FIELD = /^\s*[a-z_]+\s*=/;
let fields = [];
let timer;

/** Put the shown skill's text into the editor: what was typed and not saved before, else the latest revision's. */
export function load() {
  view.base = view.open.revisions.at(-1)?.number ?? 0;
  find("text").value = view.drafts.get(view.open.name) ?? view.open.text;
  find("text").readOnly = !view.editing;
  find("unsaved").hidden = !view.drafts.has(view.open.name);
  based();
  explain();
  attempt(check);
}

/** Say which revision the text is, or was made from: the latest is not always the one that is served. */
function based() {
  find("text-label").textContent = view.base ? `The skill's file, revision ${view.base}` : "The skill's file";
}

async function check() {
  if (!may("editor")) return find("problem").replaceChildren();
  const { name } = view.open;
  const { problem, warnings = [], revision } = await read(at("check"), { text: find("text").value });
  if (name !== view.open.name) return;
  find("problem").className = problem ? "problem bad" : "problem";
  find("problem").replaceChildren(...(problem ? complaint(problem) : [[`Valid, revision ${revision}.`, ...warnings].join(" ")]));
}

/** A mistake as `secateur skills check` words it; the list of all fields is folded, and a button leads to the line. */
function complaint(problem) {
  const [first, known] = problem.split(KNOWN);
  const line = place(problem);
  const parts = [html("p", {}, first)];
  if (line !== undefined) {
    const go = html("button", {}, `Go to line ${line + 1}`);
    go.addEventListener("click", () => select(line));
    parts.push(go);
  }
  if (known) parts.push(html("details", {}, html("summary", {}, "Known fields"), html("p", {}, known)));
  return parts;
}

/** The line that a mistake is about, from 0: by its number, else by the field that it names. */
function place(problem) {
  const numbered = problem.match(/line (\d+)/);
  if (numbered) return Number(numbered[1]) - 1;
  const field = problem.match(/unknown field `([^`]+)`/)?.[1] ?? problem.match(/`\$\.([a-z_]+)/)?.[1];
  const found = find("text").value.split("\n").findIndex((line) => field && new RegExp(`^\\s*(\\[+)?${field}\\b`).test(line));
  return found < 0 ? undefined : found;
}

function select(line) {
  const text = find("text");
  const lines = text.value.split("\n");
  const start = lines.slice(0, line).join("\n").length + Number(line > 0);
  text.focus();
  text.setSelectionRange(start, start + (lines[line] ?? "").length);
  text.scrollTop = text.scrollHeight * Math.max(0, (line - 3) / lines.length);
}

/** Show what the field under the caret means; within a table, what the table means. */
function explain() {
  const { value, selectionStart } = find("text");
  const lines = value.split("\n").slice(0, value.slice(0, selectionStart).split("\n").length);
  const [, name] = (lines.findLast((line) => TABLE.test(line)) ?? lines.findLast((line) => FIELD.test(line)) ?? "").match(/([a-z_]+)/) ?? [];
  const field = fields.find((one) => one.name === name);
  find("about").replaceChildren(...(field ? [html("b", {}, field.name), " ", ...about(field)] : ["Put the caret on a line to read what its field means."]));
}

/** A field's documentation and default. */
const about = (field) => rich(`${field.about}${field.default === null ? "" : ` Default: \`${JSON.stringify(field.default)}\`.`}`);

async function showFields() {
  fields = (await read("/admin/skills/fields")).fields.filter((one) => !OF_FILES.includes(one.name));
  find("find-field").addEventListener("input", drawFields);
  drawFields();
  if (view.open) explain();
}

function drawFields() {
  const word = find("find-field").value.trim().toLowerCase();
  const shown = fields.filter((one) => `${one.name} ${one.about}`.toLowerCase().includes(word));
  find("fields").replaceChildren(...shown.flatMap((one) => [html("dt", {}, one.name, ...adding(one)), html("dd", {}, ...about(one))]));
}

/** A button that writes a plain field into the text; tables are written by hand. */
function adding(field) {
  if (!view.editing || field.required || JSON.stringify(field.schema).includes("$ref")) return [];
  const button = html("button", { "aria-label": `Add ${field.name}` }, "Add");
  button.addEventListener("click", () => insert(field.name, field.default === null ? "" : JSON.stringify(field.default)));
  return [" ", button];
}

/** Write `name = value` in place of the field's line, else before the first table; then select the value. */
export function insert(name, value, replace = false) {
  const text = find("text").value;
  const own = new RegExp(`^${name} *=.*$`, "m");
  const at = text.search(/^\[/m);
  const line = `${name} = ${value}`;
  const added = at < 0 ? `${text.trimEnd()}\n${line}\n` : `${text.slice(0, at).trimEnd()}\n${line}\n\n${text.slice(at)}`;
  if (!own.test(text)) find("text").value = added;
  else if (replace) find("text").value = text.replace(own, () => line);
  find("text").dispatchEvent(new Event("input"));
  const now = find("text").value;
  const start = now.search(own) + `${name} = `.length;
  select(now.slice(0, start).split("\n").length - 1);
  find("text").setSelectionRange(start, now.indexOf("\n", start) < 0 ? now.length : now.indexOf("\n", start));
  explain();
}

async function save(finish) {
  const text = find("text").value;
  const body = { text, after: view.base, reason: find("reason").value };
  const made = await read(at("revisions"), body).catch(async (error) => {
    if (error.type === "conflict_error") { // the next save is made knowingly
      view.open = await read(at());
      view.base = view.open.revisions.at(-1).number;
    }
    throw error;
  });
  view.base = made.number;
  view.drafts.delete(view.open.name);
  find("unsaved").hidden = true;
  based();
  await finish(`Saved as revision ${made.number}.`);
  return made;
}

/** Make a move of the shown skill, such as `publish`, and say what is served then. */
export async function move(action, finish, body = {}) {
  const made = await read(at(action), { ...body, reason: find("reason").value });
  await finish(made.number ? `Revision ${made.number} is served.` : "No revision is served any more.");
}

async function withdraw(finish) {
  const after = view.open.source === "revision" ? "Visitors then get its file, or nothing where there is none." : "";
  if (await sure(`Serve no revision of ${view.open.name} any more? ${after}`, "Withdraw it")) await move("withdraw", finish);
}

/** Wire the editor; `finish` shows the server's state after a change, `drawList` the list, `show` a skill. */
export function startEditor({ finish, drawList, show }) {
  const click = (id, work) => find(id).addEventListener("click", () => attempt(work));
  click("save", () => save(finish));
  click("publish", async () => {
    const reason = find("reason").value;
    const { number } = await save(finish);
    find("reason").value = reason;
    await move("publish", finish, { number });
  });
  click("rollback", () => move("rollback", finish));
  click("withdraw", () => withdraw(finish));
  click("discard", async () => {
    if (!(await sure("Discard what is typed here and not saved?", "Discard it"))) return;
    view.drafts.delete(view.open.name);
    await show(view.open.name);
  });
  find("text").addEventListener("input", () => {
    const { name, text } = view.open;
    const before = view.drafts.has(name);
    if (find("text").value === text) view.drafts.delete(name);
    else view.drafts.set(name, find("text").value);
    find("unsaved").hidden = !view.drafts.has(name);
    find("done").textContent = "";
    if (before !== view.drafts.has(name)) drawList();
    clearTimeout(timer);
    timer = setTimeout(() => attempt(check), CHECK_AFTER);
  });
  for (const event of ["input", "click", "keyup", "focus"]) find("text").addEventListener(event, explain);
  find("text").addEventListener("keydown", (event) => {
    if (event.key !== "s" || !(event.ctrlKey || event.metaKey) || !view.editing) return;
    event.preventDefault();
    attempt(() => save(finish));
  });
  attempt(showFields);
}
