// Draws the figures of /admin/summary, and polls it every two seconds while the page is visible.
import { compact, histogram, html, seconds, stacked } from "/admin/charts.js";

const PERIOD = 2000;
const SPEED_SECONDS = 20;
const COLORS = 7; // further skills share one colour
const OTHERS = "others";
const ENDS = ["stop", "length", "client_gone", "budget", "rejected", "server_shutdown", "recovered", "error"];
const ranks = []; // skills ordered by their use when first seen, so that colours never change while the page is open
const WORDS = {
  stop: "ended by itself", length: "at the longest allowed", budget: "at the budget", client_gone: "reader left",
  server_shutdown: "server stopped", recovered: "server died", rejected: "refused", error: "failed",
};
const find = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const samples = [];
const KEY = "secateur-admin-key";
const FEEDBACK_PERIOD = 30_000;
let feedbackAt = 0;
let drawn = "";
let latest;

async function refresh() {
  try {
    const answer = await ask("/admin/summary");
    if ([401, 403].includes(answer.status)) return signIn((await answer.json()).error.code);
    find("sign-in").hidden = find("login").hidden = true;
    if (!answer.ok) throw new Error(answer.status === 503 ? "The ledger cannot be read" : "The server made a mistake");
    show(await answer.json());
    if (Date.now() - feedbackAt > FEEDBACK_PERIOD) {
      feedbackAt = Date.now();
      await refreshFeedback();
    }
  } catch (error) {
    state(false, error instanceof TypeError ? "No answer; these are the last figures" : error.message);
  }
}

/** List the latest comments; their text is a visitor's, so it only ever becomes a text node. */
async function refreshFeedback() {
  const answer = await ask("/admin/feedback?limit=20").catch(() => null);
  if (!answer?.ok) return;
  const { ratings } = await answer.json();
  const when = (at) => new Date(at * 1000).toISOString().slice(0, 16).replace("T", " ");
  const rows = ratings.map((one) => [when(one.at), one.skill, one.rating, one.reasons.join(", "), one.comment]);
  table("feedback", ["Time (UTC)", "Skill", "Rating", "Reasons", "Comment"], rows);
}

function ask(path) {
  const key = sessionStorage.getItem(KEY);
  return fetch(path, key ? { headers: { Authorization: `Bearer ${key}` } } : {});
}

function signIn(code) {
  if (code === "login_required") {
    state(false, "Signed out");
    find("reader").hidden = true;
    find("login").hidden = false;
    return;
  }
  state(false, sessionStorage.getItem(KEY) ? "This key does not open the page" : "A key is needed");
  find("sign-in").hidden = false;
}

/** Fetch a linked file: a plain link cannot send the admin key. */
async function download(event) {
  if (!sessionStorage.getItem(KEY)) return;
  event.preventDefault();
  const answer = await ask(event.target.getAttribute("href"));
  if (!answer.ok) return signIn((await answer.json()).error.code);
  const link = html("a", { download: event.target.textContent.toLowerCase(), href: URL.createObjectURL(await answer.blob()) });
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Name who is signed in, if there is a login, and offer what the role may do. */
function showReader(reader) {
  find("reader").hidden = !reader;
  find("who").textContent = reader ? `${reader.name}, ${reader.role}` : "";
  find("reload").hidden = reader?.role !== "operator";
}

async function reload() {
  const answer = await fetch("/admin/reload", { method: "POST" });
  const body = await answer.json();
  find("reloaded").textContent = answer.ok ? "Reloaded" : body.error.message;
}

async function signOut() {
  const answer = await fetch("/admin/logout", { method: "POST" });
  if (answer.ok) location.assign((await answer.json()).location);
}

function state(good, text) {
  find("state").className = `state ${good ? "good" : "bad"}`;
  find("state").textContent = text;
}

function show({ live, summary, reader }) {
  showReader(reader);
  const models = live.models.join(", ");
  find("model").textContent = live.instance ? `${models} on ${live.instance}` : models;
  state(live.writable, live.writable ? "Live" : "The ledger cannot be written: nothing is served");
  tiles(live, summary);
  latest = summary;
  draw();
}

function draw() {
  const summary = latest;
  const unchanged = JSON.stringify([summary, find("days").clientWidth]);
  if (unchanged === drawn) return; // keeps what the reader has opened or selected
  drawn = unchanged;
  const color = colors(summary);
  drawDays(summary, color);
  find("budgets").replaceChildren(...budgets(summary, color));
  drawSkills(summary);
  find("outcomes").replaceChildren(...outcomes(summary));
  drawLatency(summary);
}

function tiles(live, summary) {
  const today = summary.use.filter((use) => use.day === summary.today).reduce((sum, use) => sum + use.tokens, 0);
  find("today").textContent = compact(today);
  find("today-note").textContent = `${compact(summary.total)} in the ledger`;
  samples.push([live.now, summary.total]);
  while (samples.length > 1 && live.now - samples[0][0] > SPEED_SECONDS) samples.shift();
  const [since, before] = samples[0];
  find("speed").textContent = live.now > since ? compact((summary.total - before) / (live.now - since)) : "-";
  find("running").textContent = number(live.running);
  find("waiting").textContent = `${number(live.waiting)} waiting, cache\u00a0${Math.round(live.kv_used_ratio * 100)}\u00a0%`;
  for (const [id, latency] of [["first", summary.first_token], ["whole", summary.duration]]) {
    find(id).textContent = seconds(latency.quantiles[0]);
    find(`${id}-note`).textContent = latency.values.length ? `p95 ${seconds(latency.quantiles[1])}` : "";
  }
}

function colors(summary) {
  const sums = totals(summary.use);
  const names = new Set([...[...sums.keys()].sort((a, b) => sums.get(b) - sums.get(a)), ...summary.budgets.map((b) => b.skill)]);
  for (const name of names) if (!ranks.includes(name)) ranks.push(name);
  return (skill) => `var(--s${skill === OTHERS ? COLORS : Math.min(ranks.indexOf(skill), COLORS)})`;
}

function totals(use) {
  const sums = new Map();
  for (const { skill, tokens } of use) sums.set(skill, (sums.get(skill) ?? 0) + tokens);
  return sums;
}

function drawDays(summary, color) {
  const used = [...totals(summary.use).keys()];
  const apart = used.length > COLORS + 1 ? ranks.slice(0, COLORS) : used;
  const drawn = summary.use.map(({ day, skill, tokens }) => ({ day, tokens, skill: apart.includes(skill) ? skill : OTHERS }));
  const use = byDay(drawn);
  const sums = totals(drawn);
  const skills = [...sums.keys()].sort((a, b) => (a === OTHERS) - (b === OTHERS) || sums.get(b) - sums.get(a));
  find("span").textContent = `${summary.days.length} days, prompts and replies together`;
  find("legend").replaceChildren(...skills.map((skill) => html("li", { "--swatch": color(skill) }, skill)));
  const plot = skills.length ? stacked(summary.days, skills, use, { color, width: find("days").clientWidth }) : empty("No reply was counted in these days.");
  find("days").replaceChildren(plot);
  const all = byDay(summary.use);
  const names = ranks.filter((skill) => used.includes(skill));
  const cells = summary.days.filter((day) => all.has(day)).reverse().map((day) => [day, ...names.map((skill) => number(all.get(day).get(skill) ?? 0))]);
  table("days-table", ["Day", ...names], cells);
}

function byDay(use) {
  const days = new Map();
  for (const { day, skill, tokens } of use) {
    const of = days.get(day) ?? days.set(day, new Map()).get(day);
    of.set(skill, (of.get(skill) ?? 0) + tokens);
  }
  return days;
}

function budgets(summary, color) {
  const ofSkills = summary.budgets.filter((budget) => budget.limit !== null).map((budget) => ({ ...budget, name: budget.skill }));
  const ofKeys = summary.key_budgets.map((budget) => ({ ...budget, name: `key ${budget.key}`, skill: OTHERS }));
  const limited = [...ofSkills, ...ofKeys];
  if (!limited.length) return [empty("No skill or key has a budget: tokens_per_day and tokens_per_month in a skill's file, or `secateur keys limit`, set one.")];
  const full = ({ used, reserved, limit }) => (used + reserved) / limit;
  return limited.sort((a, b) => full(b) - full(a)).map(({ name, skill, period, used, reserved, limit }) => {
    const left = Math.max(0, limit - used - reserved);
    const level = left === 0 ? "budget out" : left < limit / 10 ? "budget low" : "budget";
    const part = (tokens) => `${Math.min(100, (100 * tokens) / limit)}%`;
    const bar = html("div", { class: "bar", "--swatch": color(skill) },
      ...(used ? [html("i", { "--part": part(used) })] : []),
      ...(reserved ? [html("i", { class: "reserved", "--part": part(reserved) })] : []));
    const title = html("span", {}, html("b", {}, name), period === "day" ? " today" : " this month");
    const rest = `${number(used)} of ${number(limit)}, ${left ? `${number(left)} left` : "none left"}`;
    return html("div", { class: level }, html("p", {}, title, html("span", { class: "left" }, rest)), bar);
  });
}

function drawSkills(summary) {
  const all = summary.skills.reduce((sum, use) => sum + use.input + use.output, 0);
  const rows = summary.skills.slice(0, 10).map((use) => [
    use.skill, number(use.requests), number(use.input), number(use.cached), number(use.output),
    `${Math.round((100 * (use.input + use.output)) / Math.max(all, 1))} %`,
  ]);
  table("skills", ["Skill", "Requests", "Input", "of it cached", "Output", "Share"], rows);
}

function outcomes(summary) {
  if (!summary.skills.length) return [empty("No reply has ended yet.")];
  const counts = Object.fromEntries(ENDS.map((name) => [name, summary.skills.reduce((sum, use) => sum + (use.outcomes[name] ?? 0), 0)]));
  const seen = ENDS.filter((name) => counts[name]);
  const swatch = (name) => `var(--end-${name})`;
  const legend = seen.map((name) => html("li", { "--swatch": swatch(name) }, `${WORDS[name]} `, html("b", {}, number(counts[name]))));
  const bars = summary.skills.slice(0, 10).map((use) => {
    const parts = seen.filter((name) => use.outcomes[name]).map((name) => html("i", {
      "--part": `${(100 * use.outcomes[name]) / use.requests}%`, "--swatch": swatch(name),
      title: `${WORDS[name]}: ${number(use.outcomes[name])}`,
    }));
    const count = html("span", { class: "aside" }, `${number(use.requests)} ${use.requests === 1 ? "reply" : "replies"}`);
    return html("div", { class: "outcome" }, html("p", {}, use.skill, count), html("div", { class: "bar tall" }, ...parts));
  });
  return [html("ul", { class: "legend" }, ...legend), ...bars];
}

function drawLatency(summary) {
  const parts = [["Until the first token", summary.first_token], ["Until the end", summary.duration]];
  const known = parts.filter(([, latency]) => latency.values.length);
  find("latency-note").textContent = known.length ? `The latest ${number(known[0][1].values.length)} replies` : "";
  find("latency").replaceChildren(...(known.length ? known.map(latencyPlot) : [empty("No reply has ended yet.")]));
}

function latencyPlot([name, { values, quantiles }]) {
  const [p50, p95, p99] = quantiles.map(seconds);
  const figures = html("span", {}, `p50 ${p50}, p95 ${p95}, p99 ${p99}`);
  return html("div", {}, html("p", {}, html("span", { class: "aside" }, name), figures), histogram(values, quantiles, { label: name, width: find("latency").clientWidth }));
}

function table(id, names, rows) {
  if (!rows.length) rows = [["nothing yet"]];
  const head = html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name)));
  const body = rows.map((row) => html("tr", {}, ...row.map((cell) => html("td", {}, cell))));
  find(id).replaceChildren(html("thead", {}, head), html("tbody", {}, ...body));
}

function empty(text) {
  return html("p", { class: "empty" }, text);
}

find("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, find("key").value.trim());
  find("key").value = "";
  refresh();
});
document.querySelectorAll(".foot a").forEach((link) => link.addEventListener("click", download));
refresh();
find("reload").addEventListener("click", reload);
find("sign-out").addEventListener("click", signOut);
const waiting = () => document.hidden || !find("login").hidden || (!find("sign-in").hidden && !sessionStorage.getItem(KEY));
setInterval(() => waiting() || refresh(), PERIOD);
new ResizeObserver(() => latest && draw()).observe(find("days"));
document.addEventListener("visibilitychange", () => document.hidden || refresh());
