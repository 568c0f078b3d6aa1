// An experiment: which revision answers which share of the conversations, what each did, and which one wins.
import { html } from "/admin/charts.js";
import { at, attempt, find, may, read, view } from "/admin/manager/client.js";

const ROWS = [
  ["liked", "Ratings that are up", (value) => `${(100 * value).toFixed(0)} %`, ["is liked less", "is liked more"]],
  ["refused", "Replies refused", (value) => `${(100 * value).toFixed(1)} %`, ["refuses less", "refuses more"]],
  ["tokens", "Tokens with the prompt", (value) => value.toFixed(0), ["costs fewer tokens", "costs more tokens"]],
  ["length", "Tokens of the reply", (value) => value.toFixed(0), ["answers more briefly", "answers at more length"]],
];

/** Draw the shown skill's experiment; `changed` is called after a start, a stop or a decision. */
export async function showExperiment(changed) {
  const { experiment } = view.open.served ? await read(at("experiment")) : { experiment: null };
  const title = html("h3", { id: "experiment-title" }, "Experiment");
  find("experiment").replaceChildren(title, ...(experiment ? running(experiment, changed) : starting(changed)));
}

function starting(changed) {
  const others = view.open.revisions.filter((one) => one.number !== view.open.published);
  const able = view.editing && may("publisher");
  if (!view.open.published || !others.length || !able) {
    const why = able ? "Publish one revision and save another: then a share of the visitors can meet the other." : "No experiment runs.";
    return [html("p", { class: "aside" }, why)];
  }
  const rival = html("select", { id: "rival" }, ...others.map((one) => html("option", { value: String(one.number) }, `revision ${one.number}`)).reverse());
  const share = html("input", { id: "share", type: "number", min: "1", max: "99", value: "50", required: "" });
  const form = html("form", { class: "row" }, html("label", {}, "Let ", rival), html("label", {}, "answer ", share, " % of the conversations"), html("button", {}, "Start"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act("start", { rival: Number(rival.value), share: Number(share.value) / 100 }, changed);
  });
  return [form];
}

function running(found, changed) {
  const { published, rival } = found;
  const label = (arm) => (arm.number ? `Revision ${arm.number}` : `File ${arm.digest}`);
  const head = html("tr", {}, ...["", `${label(published)}, published`, label(rival), "Difference"].map((text) => (text ? html("th", { scope: "col" }, text) : html("td"))));
  const counts = ["replies", "ratings"].map((name) => line(name === "replies" ? "Replies" : "Ratings", [published[name], rival[name]].map((value) => value.toLocaleString("en")), ""));
  const figures = ROWS.map(([name, text, write]) => line(text, [published.figures, rival.figures].map((arm) => interval(arm[name], write)), interval(found.difference[name], write, true)));
  const table = html("table", {}, html("thead", {}, head), html("tbody", {}, ...counts, ...figures));
  const said = `${label(rival)} answers ${(100 * found.share).toFixed(0)} % of the visitors' conversations${found.since ? ` since ${found.since.slice(0, 16).replace("T", " ")}` : ""}. ${verdict(found, label(rival))}`;
  return [html("p", { class: "aside" }, said), html("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Figures of the experiment" }, table), ...choices(found, changed)];
}

function choices({ published, rival }, changed) {
  if (!view.editing || !may("publisher") || !rival.number) return [];
  const button = (text, action, body) => {
    const made = html("button", {}, text);
    made.addEventListener("click", () => act(action, body, changed));
    return made;
  };
  return [html("div", { class: "row" }, button(`Revision ${rival.number} wins`, "decide", { number: rival.number }), button(`Revision ${published.number} wins`, "decide", { number: published.number }), button("Stop without a winner", "stop", {}))];
}

const act = (action, body, changed) => attempt(async () => {
  await read(at(`experiment/${action}`), { ...body, reason: find("reason").value });
  await changed({ start: "The experiment runs.", stop: "The experiment is stopped.", decide: `Revision ${body.number} answers everybody.` }[action]);
});

function line(text, cells, difference) {
  return html("tr", {}, html("th", { scope: "row" }, text), ...[...cells, difference].map((cell) => html("td", {}, cell)));
}

/** A figure with its 95 % interval. */
function interval(found, write, signed = false) {
  if (!found) return "-";
  const sign = signed && found.value > 0 ? "+" : "";
  const plain = (value) => write(value).replace(/^-(?=[0.]+( %)?$)/, "");
  return html("span", {}, `${sign}${plain(found.value)} `, html("small", {}, `${plain(found.low)} to ${plain(found.high)}`.replaceAll(" %", "")));
}

/** What differs beyond chance, in words. */
function verdict({ difference }, rival) {
  const clear = ROWS.filter(([name]) => difference[name] && (difference[name].low > 0 || difference[name].high < 0));
  if (!clear.length) return "Nothing differs beyond chance so far (95 % intervals).";
  return `${rival} ${clear.map(([name, , , words]) => words[Number(difference[name].low > 0)]).join(", ")}.`;
}
