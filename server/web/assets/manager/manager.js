// The skills manager: lists skills, edits and checks a draft, tries it, and saves, compares and publishes revisions.
import { html } from "/admin/charts.js";
import { ask, at, attempt, find, moment, read, view } from "/admin/manager/client.js";
import { showExperiment } from "/admin/manager/experiment.js";
import { refresh } from "/admin/manager/parts.js";

const CHECK_AFTER = 400;
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
let turns = [];
let timer;

async function list() {
  const [found, figures] = await Promise.all([read("/admin/skills"), read("/admin/summary")]);
  skills = found.skills;
  view.editing = found.editing === "edit";
  find("new").hidden = find("actions").hidden = !view.editing;
  find("mode").textContent = view.editing ? "" : found.editing === "read" ? "Changes are made by `secateur skills`." : "Skills are files; skill_revisions = \"edit\" in server.toml lets this page change them.";
  const week = new Map(figures.summary.skills.map((use) => [use.skill, use]));
  const left = new Map(figures.summary.budgets.filter((one) => one.limit !== null).map((one) => [one.skill, one.limit - one.used - one.reserved]));
  find("list").replaceChildren(...skills.map((skill) => html("li", {}, entry(skill, week.get(skill.name), left.get(skill.name)))));
}

function entry(skill, use, left) {
  const button = html("button", { "aria-current": String(skill.name === view.open?.name) }, html("b", {}, skill.title),
    html("small", {}, `${skill.name}, ${state(skill)}`),
    html("small", {}, week(skill, use)), ...(left === undefined ? [] : [html("small", {}, `${Math.max(0, left).toLocaleString("en")} tokens left`)]));
  button.addEventListener("click", () => attempt(() => show(skill.name)));
  return button;
}

/** Replies and ratings of the last seven days. */
function week({ ratings }, use) {
  const rated = ratings.up + ratings.down;
  return `${use?.requests ?? 0} replies in 7 days${rated ? `, ${ratings.up} of ${rated} rated good` : ""}`;
}

function state(skill) {
  if (skill.published) return `revision ${skill.published} is served`;
  return skill.served ? "served from its file" : "draft, not served";
}

async function show(name) {
  const turn = ++shows;
  const found = await read(`/admin/skills/${encodeURIComponent(name)}`);
  if (turn !== shows) return; // another skill was chosen meanwhile
  view.open = found;
  find("editor").hidden = find("play").hidden = false;
  find("diff").hidden = true;
  find("text").value = view.open.text;
  find("text").readOnly = !view.editing;
  describe();
  startOver();
  refresh();
  await list();
  await showExperiment(finish);
  await check();
}

function describe() {
  find("editor-title").textContent = view.open.title;
  find("serving").textContent = [state(view.open), view.open.model, view.open.knowledge && `knowledge ${view.open.knowledge}`].filter(Boolean).join(", ");
  find("origins").textContent = view.open.origins.length ? `It works on pages of ${view.open.origins.join(", ")}.` : "No page may embed it yet: list origins, such as origins = [\"https://www.example.com\"].";
  find("line").textContent = `<script async src="https://YOUR-SERVER/widget.js" data-skill="${view.open.name}"></script>`;
  const rows = [...view.open.revisions].reverse().flatMap((one) => [html("tr", {}, html("td", {}, String(one.number)),
    html("td", {}, one.reason || "No reason given", html("small", {}, `${one.author}, ${moment(one.made)}`)), html("td", {}, standing(one)), html("td", {}, ...choices(one))), ...evidence(one)]);
  const names = ["No.", "Reason, author, time (UTC)", "State", "Actions"];
  const head = html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name)));
  find("revisions").replaceChildren(html("thead", {}, head), html("tbody", {}, ...(rows.length ? rows : [html("tr", {}, html("td", { colspan: "4" }, "None is saved yet."))])));
  find("rollback").disabled = view.open.moves.length < 2;
  find("withdraw").disabled = !view.open.published;
}

function standing(one) {
  if (one.number === view.open.published) return html("b", {}, "served");
  if (!one.gate) return "";
  return html("span", { class: one.gate.passed ? "passed" : "failed" }, one.gate.passed ? "passes the gate" : "held by the gate");
}

/** A row below a revision: what it scored on tasks, and what its gate says. */
function evidence(one) {
  const scores = Object.entries(one.scores).map(([task, { means }]) => `On ${task}: ${Object.entries(means).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", ")}.`);
  const gate = one.gate && one.number !== view.open.published ? [`Gate: ${one.gate.reason}.`] : [];
  const lines = [...scores, ...gate].map((text) => html("small", {}, text));
  return lines.length ? [html("tr", { class: "evidence" }, html("td"), html("td", { colspan: "3" }, ...lines))] : [];
}

function choices(one) {
  const compare = html("button", {}, "Compare");
  compare.setAttribute("aria-label", `Compare revision ${one.number} with the served one`);
  compare.addEventListener("click", () => attempt(() => difference(one.number)));
  if (!view.editing || one.number === view.open.published) return [compare];
  const publish = html("button", {}, "Publish");
  publish.setAttribute("aria-label", `Publish revision ${one.number}`);
  publish.addEventListener("click", () => attempt(() => move("publish", { number: one.number })));
  return [compare, " ", publish];
}

async function difference(number) {
  const other = view.open.published || view.open.revisions.at(-1).number;
  const { diff } = await read(`${at("diff")}?old=${Math.min(number, other)}&new=${Math.max(number, other)}`);
  const kind = (line) => (line.startsWith("+") ? "plus" : line.startsWith("-") ? "minus" : "");
  find("diff").replaceChildren(...(diff || "They are equal.").split("\n").map((line) => html("div", { class: kind(line) }, line || "\u00a0")));
  find("diff").hidden = false;
}

async function check() {
  const { problem, warnings = [], revision } = await read(at("check"), { text: find("text").value });
  find("problem").className = problem ? "problem bad" : "problem";
  find("problem").textContent = problem ?? [`Valid, revision ${revision}.`, ...warnings].join(" ");
  return !problem;
}

async function save() {
  const made = await read(at("revisions"), { text: find("text").value, after: view.open.revisions.at(-1)?.number ?? 0, reason: find("reason").value });
  await finish(`Saved as revision ${made.number}.`);
  return made;
}

async function publish() {
  const made = await save();
  await move("publish", { number: made.number });
}

async function move(action, body = {}) {
  const made = await read(at(action), { ...body, reason: find("reason").value });
  await finish(made.number ? `Revision ${made.number} is served.` : "No revision is served any more.");
}

async function finish(text) {
  view.open = await read(at());
  describe();
  await list();
  await showExperiment(finish);
  refresh();
  find("reason").value = "";
  find("done").textContent = text;
}

function create() {
  const name = prompt("The skill's name: letters, digits, dots, dashes")?.trim();
  if (!name) return;
  if (skills.some((skill) => skill.name === name)) return attempt(() => show(name));
  shows += 1;
  view.open = { name, title: name, text: TEMPLATE(name), origins: [], revisions: [], moves: [], published: 0, served: false };
  find("editor").hidden = find("play").hidden = false;
  find("text").value = view.open.text;
  find("text").readOnly = false;
  describe();
  startOver();
  refresh();
  attempt(() => showExperiment(finish));
  attempt(check);
  attempt(list);
  find("text").focus();
}

function startOver() {
  turns = [];
  find("turns").replaceChildren();
  find("prompt").textContent = "";
  find("prompt-title").textContent = "The prompt";
  showPassages({ kind: "none", passages: [] });
}

async function send() {
  const question = find("question").value.trim();
  const box = html("div", { class: "turn assistant" });
  const answer = await ask(at("try"), { text: find("text").value, messages: [...turns, { role: "user", content: question }] });
  find("turns").append(html("div", { class: "turn user" }, question), box);
  find("question").value = "";
  let said = "";
  for await (const [name, data] of events(answer.body)) {
    if (name === "passages") showPassages(data);
    if (name === "prompt") showPrompt(data);
    if (name === "text") {
      said += data.text;
      box.append(...(data.tokens.length ? data.tokens.map(token) : [data.text]));
    }
    if (name === "end") box.append(html("span", { class: "numbers" }, numbers(data)));
    if (name === "error") throw new Error(data.message);
    find("turns").scrollTop = find("turns").scrollHeight;
  }
  turns.push({ role: "user", content: question }, { role: "assistant", content: said || "\u2026" });
}

function token({ token: text, logprob, top }) {
  const percent = (value) => `${(100 * Math.exp(value)).toFixed(1)} %`;
  const others = top.map(([other, value]) => `${JSON.stringify(other)} ${percent(value)}`).join("\n");
  return html("span", { title: `${percent(logprob)}\n${others}` }, text);
}

function showPrompt({ text, tokens }) {
  find("prompt").textContent = text;
  find("prompt-title").textContent = `The prompt, ${tokens} tokens`;
}

/** What the knowledge found, and whether it lets the model answer. */
function showPassages({ kind, passages }) {
  const decided = { passages: "quoted to the model", verbatim: "a stored answer", refused: "too far from the question: refused", none: "" }[kind];
  find("passages-title").textContent = kind === "none" ? "No knowledge to search" : `${passages.length === 1 ? "1 passage" : `${passages.length} passages`} found: ${decided}`;
  find("passages").replaceChildren(...passages.map((one) => html("li", {}, html("div", {}, html("b", {}, one.title || one.url), html("small", {}, `relevance ${one.relevance}, ${one.url}`), one.text))));
}

function numbers(data) {
  const speed = data.completion_tokens > 1 && data.seconds > data.first ? `, ${Math.round((data.completion_tokens - 1) / (data.seconds - data.first))} tokens/s` : "";
  const from = data.citations.length ? `. From ${data.citations.map((one) => one.title).join("; ")}` : "";
  return `${data.prompt_tokens} prompt tokens (${data.cached_tokens} cached), ${data.completion_tokens} of reply, first after ${Math.round(1000 * data.first)} ms${speed}, ended by ${data.finish}${from}`;
}

/** The events of a stream as pairs of name and data. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("event")) yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

async function showFields() {
  const { fields } = await read("/admin/skills/fields");
  const shown = (word) => fields.filter((one) => `${one.name} ${one.about}`.toLowerCase().includes(word));
  const draw = (word) => find("fields").replaceChildren(...shown(word).flatMap((one) => [html("dt", {}, one.name), html("dd", {}, `${one.about}${one.default === null ? "" : ` Default: ${JSON.stringify(one.default)}.`}`)]));
  find("find-field").addEventListener("input", () => draw(find("find-field").value.trim().toLowerCase()));
  draw("");
}

const click = (id, work) => find(id).addEventListener("click", () => attempt(work));
click("save", save);
click("publish", publish);
click("rollback", () => move("rollback"));
click("withdraw", () => move("withdraw"));
click("clear", startOver);
click("copy", () => navigator.clipboard.writeText(find("line").textContent));
find("new").addEventListener("click", create);
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(send);
});
find("text").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => attempt(check), CHECK_AFTER);
});
attempt(async () => {
  await list();
  await showFields();
  if (skills.length && !view.open) await show(skills[0].name);
});
