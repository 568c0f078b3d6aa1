// The skills manager: lists skills, edits and checks a draft, tries it, and saves, compares and publishes revisions.
import { html } from "/admin/charts.js";

const KEY = "secateur-admin-key"; // the admin page keeps it there
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
const find = (id) => document.getElementById(id);
let skills = [];
let open; // the shown skill, with its revisions
let editing = false;
let turns = [];
let timer;

async function ask(path, body) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const { error } = await answer.json();
  throw Object.assign(new Error(answer.status === 401 ? "Sign in, or give the admin key, on the page Usage." : error.message), error);
}

const read = async (path, body) => (await ask(path, body)).json();
const at = (action = "") => `/admin/skills/${encodeURIComponent(open.name)}${action && `/${action}`}`;

/** Run what a click asks for; a refusal is shown and nothing else happens. */
async function attempt(work) {
  find("trouble").hidden = true;
  try {
    await work();
  } catch (error) {
    find("trouble").textContent = error instanceof TypeError ? "The server does not answer." : error.message;
    find("trouble").hidden = false;
  }
}

async function list() {
  const [found, figures] = await Promise.all([read("/admin/skills"), read("/admin/summary")]);
  skills = found.skills;
  editing = found.editing === "edit";
  find("new").hidden = find("actions").hidden = !editing;
  find("mode").textContent = editing ? "" : found.editing === "read" ? "Changes are made by `secateur skills`." : "Skills are files; skill_revisions = \"edit\" in server.toml lets this page change them.";
  const week = new Map(figures.summary.skills.map((use) => [use.skill, use]));
  const left = new Map(figures.summary.budgets.filter((one) => one.limit !== null).map((one) => [one.skill, one.limit - one.used - one.reserved]));
  find("list").replaceChildren(...skills.map((skill) => html("li", {}, entry(skill, week.get(skill.name), left.get(skill.name)))));
}

function entry(skill, use, left) {
  const button = html("button", { "aria-current": String(skill.name === open?.name) }, html("b", {}, skill.title),
    html("small", {}, `${skill.name}, ${state(skill)}`),
    html("small", {}, `${use?.requests ?? 0} replies in 7 days${left === undefined ? "" : `, ${Math.max(0, left).toLocaleString("en")} tokens left`}`));
  button.addEventListener("click", () => attempt(() => show(skill.name)));
  return button;
}

function state(skill) {
  if (skill.published) return `revision ${skill.published} is served`;
  return skill.served ? "served from its file" : "draft, not served";
}

async function show(name) {
  open = await read(`/admin/skills/${encodeURIComponent(name)}`);
  find("editor").hidden = find("play").hidden = false;
  find("diff").hidden = true;
  find("text").value = open.text;
  find("text").readOnly = !editing;
  describe();
  startOver();
  await list();
  await check();
}

function describe() {
  find("editor-title").textContent = open.title;
  find("serving").textContent = [state(open), open.model, open.knowledge && `knowledge ${open.knowledge}`].filter(Boolean).join(", ");
  find("origins").textContent = open.origins.length ? `It works on pages of ${open.origins.join(", ")}.` : "No page may embed it yet: list origins, such as origins = [\"https://www.example.com\"].";
  find("line").textContent = `<script async src="https://YOUR-SERVER/widget.js" data-skill="${open.name}"></script>`;
  const rows = [...open.revisions].reverse().map((one) => html("tr", {}, html("td", {}, String(one.number)), html("td", {}, one.made.replace("T", " ").replace("+00:00", "")),
    html("td", {}, one.author), html("td", {}, one.reason), html("td", {}, one.number === open.published ? "served" : ""), html("td", {}, ...choices(one))));
  const names = ["No.", "Made (UTC)", "By", "Why", "State", "Actions"];
  const head = html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name)));
  find("revisions").replaceChildren(html("thead", {}, head), html("tbody", {}, ...(rows.length ? rows : [html("tr", {}, html("td", { colspan: "6" }, "None is saved yet."))])));
  find("rollback").disabled = open.moves.length < 2;
  find("withdraw").disabled = !open.published;
}

function choices(one) {
  const compare = html("button", {}, "Compare");
  compare.setAttribute("aria-label", `Compare revision ${one.number} with the served one`);
  compare.addEventListener("click", () => attempt(() => difference(one.number)));
  if (!editing) return [compare];
  const publish = html("button", {}, "Publish");
  publish.setAttribute("aria-label", `Publish revision ${one.number}`);
  publish.addEventListener("click", () => attempt(() => move("publish", { number: one.number })));
  return [compare, " ", publish];
}

async function difference(number) {
  const other = open.published || open.revisions.at(-1).number;
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
  const made = await read(at("revisions"), { text: find("text").value, after: open.revisions.at(-1)?.number ?? 0, reason: find("reason").value });
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
  open = await read(at());
  describe();
  await list();
  find("reason").value = "";
  find("done").textContent = text;
}

function create() {
  const name = prompt("The skill's name: letters, digits, dots, dashes")?.trim();
  if (!name) return;
  open = { name, title: name, text: TEMPLATE(name), origins: [], revisions: [], moves: [], published: 0, served: false };
  find("editor").hidden = find("play").hidden = false;
  find("text").value = open.text;
  find("text").readOnly = false;
  describe();
  startOver();
  attempt(check);
  find("text").focus();
}

function startOver() {
  turns = [];
  find("turns").replaceChildren();
  find("prompt").textContent = "";
  find("prompt-title").textContent = "The prompt";
}

async function send() {
  const question = find("question").value.trim();
  const box = html("div", { class: "turn assistant" });
  const answer = await ask(at("try"), { text: find("text").value, messages: [...turns, { role: "user", content: question }] });
  find("turns").append(html("div", { class: "turn user" }, question), box);
  find("question").value = "";
  let said = "";
  for await (const [name, data] of events(answer.body)) {
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

function numbers(data) {
  const speed = data.seconds > data.first ? `, ${Math.round((data.completion_tokens - 1) / (data.seconds - data.first))} tokens/s` : "";
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
  if (skills.length) await show(skills[0].name);
});
