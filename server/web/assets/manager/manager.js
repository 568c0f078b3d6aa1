// The skills manager: lists skills, shows one with everything that belongs to it, and makes new ones.
import { html } from "/admin/charts.js";
import { attempt, at, find, may, read, redraw, view } from "/admin/manager/client.js";
import { load, startEditor } from "/admin/manager/editor.js";
import { showExperiment } from "/admin/manager/experiment.js";
import { refresh } from "/admin/manager/parts.js";
import { startOver } from "/admin/manager/playground.js";
import { showRevisions } from "/admin/manager/revisions.js";

const MANY = 8; // skills from which on the list has a field to find one
const PHONE = "(max-width: 720px)";
const TEMPLATE = (name) => `# A skill. Small models follow examples better than instructions.
name = "${name}"
title = "Chat"
greeting = "Hello! What would you like to know?"
origins = []            # the pages that may embed it, such as "https://www.example.com"
max_tokens = 200
temperature = 0.3
system = """
You are the help desk of a bicycle workshop. Answer in one or two short sentences."""

[[examples]]
question = "How long does a repair take?"
answer = "Two working days. We call you when it is ready."
`;
let skills = [];
let shows = 0;

/** Read the skills and their figures, then draw the list. */
async function list() {
  const [found, figures] = await Promise.all([read("/admin/skills"), read("/admin/summary")]);
  const week = new Map(figures.summary.skills.map((use) => [use.skill, use]));
  const left = new Map(figures.summary.budgets.filter((one) => one.limit !== null).map((one) => [one.skill, one.limit - one.used - one.reserved]));
  skills = found.skills.map((skill) => ({ ...skill, use: week.get(skill.name), left: left.get(skill.name) }));
  view.role = found.role;
  view.editing = found.editing === "edit" && may("editor");
  find("new").hidden = find("actions").hidden = !view.editing;
  for (const id of ["publish", "rollback", "withdraw"]) find(id).hidden = !may("publisher");
  find("mode").replaceChildren(...mode(found.editing));
  find("filter-label").hidden = skills.length <= MANY;
  drawList();
}

/** Why this page changes nothing, or not everything. */
function mode(editing) {
  if (editing === "read") return ["This page only shows skills. They are changed by ", html("code", {}, "secateur skills"), "."];
  if (editing === "off") return ["Skills are files. ", html("code", {}, 'skill_revisions = "edit"'), " in server.toml lets this page change them."];
  if (!may("editor")) return [`Your role is ${view.role}: you read everything but conversations, and change nothing.`];
  return may("publisher") ? [] : [`Your role is ${view.role}: you save and try drafts, and a publisher publishes them.`];
}

function drawList() {
  const word = find("filter").value.trim().toLowerCase();
  const fresh = [...view.drafts.keys()].filter((name) => !skills.some((skill) => skill.name === name));
  const all = [...fresh.map((name) => ({ name, title: name, fresh: true })), ...skills];
  const shown = all.filter((skill) => `${skill.name} ${skill.title}`.toLowerCase().includes(word)).map((skill) => html("li", {}, entry(skill)));
  const empty = all.length ? "None has this in its name." : view.editing ? "No skill yet: make the first one." : "No skill yet.";
  redraw(find("list"), shown.length ? shown : [html("li", { class: "aside" }, empty)]);
}

function entry(skill) {
  const lines = skill.fresh ? ["a new draft"] : [`${skill.name}, ${state(skill)}`, week(skill)];
  if (skill.left !== undefined) lines.push(`${Math.max(0, skill.left).toLocaleString("en")} tokens left`);
  const button = html("button", { "aria-current": String(skill.name === view.open?.name), "data-name": skill.name }, html("b", {}, skill.title),
    ...lines.map((line) => html("small", {}, line)), ...(view.drafts.has(skill.name) ? [html("small", { class: "unsaved" }, "unsaved changes")] : []));
  button.addEventListener("click", () => attempt(async () => {
    await show(skill.name);
    if (matchMedia(PHONE).matches) find("editor-title").focus();
  }));
  return button;
}

/** Replies and ratings of the last seven days. */
function week({ ratings, use }) {
  const rated = ratings.up + ratings.down;
  const replies = use?.requests ?? 0;
  return `${replies === 1 ? "1 reply" : `${replies.toLocaleString("en")} replies`} in 7 days${rated ? `, ${ratings.up} of ${rated} rated good` : ""}`;
}

function state(skill) {
  if (skill.published) return `revision ${skill.published} is served`;
  return skill.served ? "served from its file" : "a draft, not served";
}

/** Open a skill of the server, or a new one that is only a draft of this page. */
async function show(name) {
  const turn = ++shows;
  const fresh = !skills.some((skill) => skill.name === name);
  if (fresh && !view.drafts.has(name)) return skills.length ? show(skills[0].name) : location.reload(); // its draft was discarded
  const found = fresh ? { name, title: name, text: "", origins: [], revisions: [], moves: [], published: 0, served: false } : await read(`/admin/skills/${encodeURIComponent(name)}`);
  if (turn !== shows) return; // another skill was chosen meanwhile
  view.open = found;
  find("editor").hidden = find("parts").hidden = false;
  find("play").hidden = !may("editor");
  find("diff").hidden = true;
  find("done").textContent = find("reason").value = "";
  load();
  describe();
  startOver();
  refresh();
  await list();
  await showExperiment(finish);
}

function describe() {
  const { title, model, knowledge, origins, name, served } = view.open;
  find("editor-title").textContent = title;
  find("serving").textContent = [state(view.open), model, knowledge && `knowledge ${knowledge}`].filter(Boolean).join(", ");
  find("origins").textContent = !served ? "Once the skill is published, the line works on pages of the origins that its text lists." : origins.length ? `It works on pages of ${origins.join(", ")}.` : "No page may embed what is served: list origins, such as origins = [\"https://www.example.com\"].";
  find("line").textContent = `<script async src="https://YOUR-SERVER/widget.js" data-skill="${name}"></script>`;
  find("curl").textContent = `curl https://YOUR-SERVER/v1/chat/completions -H "Authorization: Bearer KEY" -H "Content-Type: application/json" -d '{"model": "${name}", "messages": [{"role": "user", "content": "Hello"}]}'`;
  showRevisions(finish);
}

/** Show what the server has after a change, and say what was done. */
async function finish(text) {
  view.open = await read(at());
  describe();
  await list();
  await showExperiment(finish);
  refresh();
  find("reason").value = "";
  find("done").textContent = text;
}

/** Ask for the name of a new skill, and what it begins with. */
function offer() {
  const copies = skills.map((skill) => html("option", { value: skill.name }, `a copy of ${skill.name}`));
  find("new-from").replaceChildren(html("option", { value: "" }, "the template"), ...copies);
  find("new-name").value = find("new-problem").textContent = "";
  find("new-dialog").showModal();
}

async function create() {
  const [name, from] = [find("new-name").value.trim(), find("new-from").value];
  const refuse = (text) => (find("new-problem").textContent = text);
  if (!/^[a-z0-9][a-z0-9._-]{0,63}$/.test(name)) return refuse("A name has small letters, digits, . _ and -, and begins with a letter or digit.");
  if (view.drafts.has(name) || skills.some((skill) => skill.name === name)) return refuse(`There is a skill ${name} already: choose another name.`);
  view.drafts.set(name, from ? copied((await read(`/admin/skills/${encodeURIComponent(from)}`)).text, name) : TEMPLATE(name));
  find("new-dialog").close();
  await show(name);
  find("text").focus();
}

/** The text of another skill under a new name; keys, site keys and aliases open or name that one alone. */
function copied(text, name) {
  return text.replace(/^(keys|site_keys|aliases)\s*=\s*\[[^\]]*\][^\n]*\n?/gm, "").replace(/^name\s*=.*$/m, () => `name = "${name}"`);
}

startEditor({ finish, drawList, show });
find("filter").addEventListener("input", drawList);
find("new").addEventListener("click", offer);
find("new-cancel").addEventListener("click", () => find("new-dialog").close());
find("new-form").addEventListener("submit", (event) => {
  event.preventDefault();
  create().catch((error) => (find("new-problem").textContent = error.message));
});
addEventListener("beforeunload", (event) => view.drafts.size && event.preventDefault());
attempt(async () => {
  await list();
  if (skills.length) await show(skills[0].name);
});
