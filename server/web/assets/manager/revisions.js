// The shown skill's revisions: what each is for, whether its gate lets it pass, and what two of them differ in.
import { html } from "/admin/charts.js";
import { at, attempt, find, may, moment, read, redraw, view } from "/admin/manager/client.js";
import { move } from "/admin/manager/editor.js";

const TYPED = "typed";

/** Draw the table and the choice of two to compare; `finish` is called after a publication. */
export function showRevisions(finish) {
  const newest = [...view.open.revisions].reverse();
  const rows = newest.flatMap((one) => [html("tr", {}, html("td", {}, String(one.number)),
    html("td", {}, one.reason || "No reason given", html("small", {}, `${one.author}, ${moment(one.made)}`)), html("td", {}, standing(one)), html("td", {}, ...choices(one, finish))), ...evidence(one)]);
  const names = ["No.", "Reason, author, time (UTC)", "State", "Actions"];
  const head = html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name)));
  const none = view.open.served ? "None is saved yet: its file is served." : "None is saved yet.";
  redraw(find("revisions"), [html("thead", {}, head), html("tbody", {}, ...(rows.length ? rows : [html("tr", {}, html("td", { colspan: "4", class: "aside" }, none))]))], find("reason"));
  const now = view.open.moves.at(-1)?.number;
  const before = view.open.moves.filter((one) => one.number !== now).at(-1);
  find("rollback").disabled = !before;
  find("rollback").textContent = before?.number ? `Roll back to ${before.number}` : "Roll back";
  find("withdraw").disabled = !view.open.published;
  offer(newest);
}

function standing(one) {
  if (one.number === view.open.published) return html("b", { class: "passed" }, "served");
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

function choices(one, finish) {
  const button = (text, label, work) => {
    const made = html("button", { "aria-label": label }, text);
    made.addEventListener("click", () => attempt(work));
    return made;
  };
  if (one.number === view.open.published) return [];
  const compared = view.open.published ? "the served one" : "the latest";
  const other = view.open.published || view.open.revisions.at(-1).number;
  const compare = one.number === other ? [] : [button("Compare", `Compare revision ${one.number} with ${compared}`, () => difference(...[one.number, other].sort((a, b) => a - b)))];
  if (!view.editing || !may("publisher")) return compare;
  return [...compare, " ", button("Publish", `Publish revision ${one.number}`, () => move("publish", finish, { number: one.number }))];
}

/** Offer any two revisions, or one and what is typed, to compare. */
function offer(newest) {
  const options = () => newest.map((one) => html("option", { value: String(one.number) }, `revision ${one.number}${one.number === view.open.published ? ", served" : ""}`));
  find("compare").hidden = !newest.length;
  find("old").replaceChildren(...options());
  find("new-side").replaceChildren(...(view.editing ? [html("option", { value: TYPED }, "the text above")] : []), ...options());
  if (view.open.published) find("old").value = String(view.open.published);
}

/** Show what changes from the revision `old` to another, or to what is typed. */
export async function difference(old, other) {
  const typed = other === TYPED;
  const { diff } = await (typed ? read(at("diff"), { old, text: find("text").value }) : read(`${at("diff")}?old=${old}&new=${other}`));
  const kind = (line, index) => (index < 2 || line.startsWith("@@") ? "place" : line.startsWith("+") ? "plus" : line.startsWith("-") ? "minus" : "");
  const lines = diff ? diff.trimEnd().split("\n") : [`Revision ${old} and ${typed ? "the text above" : `revision ${other}`} are equal.`];
  find("diff").replaceChildren(...lines.map((line, index) => html("div", { class: diff && kind(line, index) }, line || "\u00a0")));
  find("diff").hidden = false;
  find("diff").scrollIntoView({ block: "nearest" });
}

find("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  const other = find("new-side").value;
  attempt(() => difference(Number(find("old").value), other === TYPED ? TYPED : Number(other)));
});
