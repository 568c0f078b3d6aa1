// Tries the draft: a conversation that streams from the text in the editor, with prompt, passages, probabilities and times.
import { html } from "/admin/charts.js";
import { ask, at, attempt, find, view } from "/admin/manager/client.js";

const HINT = "Point at a word of a reply, or go through it by arrow keys, to see how likely it was. The less likely, the darker.";
let turns = [];
let running;

/** Begin a new conversation; a reply that is under way is stopped. */
export function startOver() {
  running?.abort();
  turns = [];
  find("turns").replaceChildren();
  find("chances").textContent = "";
  find("prompt").textContent = "It is shown here with the first reply.";
  find("prompt-title").textContent = "The prompt";
  showPassages();
}

async function send() {
  const content = find("question").value.trim();
  if (!content || running) return;
  const said = html("p", { class: "said", tabindex: "0", role: "group", "aria-label": "Reply, word by word" });
  const box = html("div", { class: "turn assistant waiting" }, said);
  const asked = html("div", { class: "turn user" }, content);
  const conversation = turns;
  find("turns").append(asked, box);
  find("question").value = "";
  busy(new AbortController());
  try {
    await stream(content, said, box);
  } catch (error) {
    if (error.name !== "AbortError") {
      asked.remove();
      box.remove();
      find("question").value = content;
      throw error;
    }
    box.append(html("span", { class: "numbers" }, "stopped here"));
  } finally {
    box.classList.remove("waiting");
    busy();
  }
  if (conversation === turns) turns.push({ role: "user", content }, { role: "assistant", content: said.textContent || "\u2026" });
}

/** Draw a reply's events as they come. */
async function stream(content, said, box) {
  const answer = await ask(at("try"), { text: find("text").value, messages: [...turns, { role: "user", content }] }, running.signal);
  for await (const [name, data] of events(answer.body)) {
    if (name === "passages") showPassages(data);
    if (name === "prompt") showPrompt(data);
    if (name === "text") {
      box.classList.remove("waiting");
      said.append(...(data.tokens.length ? data.tokens.map(token) : [data.text]));
      if (data.tokens.length) find("chances").textContent = HINT;
    }
    if (name === "end") box.append(html("span", { class: "numbers" }, numbers(data)));
    if (name === "error") throw new Error(data.message);
    find("turns").scrollTop = find("turns").scrollHeight;
  }
}

/** Offer to stop the reply that `controller` ends, or to send another question. */
function busy(controller) {
  running = controller;
  find("turns").setAttribute("aria-busy", String(Boolean(controller))); // a reader hears the whole reply, not its tokens
  const focused = [find("send"), find("stop")].includes(document.activeElement);
  find("send").hidden = Boolean(controller);
  find("stop").hidden = !controller;
  if (focused) (controller ? find("stop") : find("question")).focus();
}

function token({ token: text, logprob, top }) {
  const made = html("span", { class: "token", "--doubt": String(1 - Math.exp(logprob)) }, text);
  made.chances = [[text, logprob], ...top.filter(([other]) => other !== text)];
  return made;
}

/** Say how likely a token was, and what else could have come. */
function choose(chosen) {
  for (const other of find("turns").querySelectorAll(".chosen")) other.classList.remove("chosen");
  chosen.classList.add("chosen");
  const percent = (value) => `${(100 * Math.exp(value)).toFixed(1)} %`;
  const [[own, logprob], ...others] = chosen.chances;
  const rest = others.map(([text, value]) => `${JSON.stringify(text)} ${percent(value)}`).join(", ");
  find("chances").replaceChildren(html("b", {}, `${JSON.stringify(own)} ${percent(logprob)}`), rest && `, instead of ${rest}`);
}

function step(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const reply = event.target.closest?.(".said");
  if (!by || !reply) return;
  const tokens = [...reply.querySelectorAll(".token")];
  const next = tokens[Math.min(tokens.length - 1, Math.max(0, tokens.findIndex((one) => one.classList.contains("chosen")) + by))];
  if (next) choose(next);
  event.preventDefault();
}

function showPrompt({ text, tokens }) {
  find("prompt").textContent = text;
  find("prompt-title").textContent = `The prompt, ${tokens.toLocaleString("en")} tokens`;
}

/** What the knowledge found, and whether it lets the model answer. */
function showPassages(found) {
  const kind = found?.kind ?? "none";
  const passages = found?.passages ?? [];
  const decided = { passages: "quoted to the model", verbatim: "a stored answer", refused: "too far from the question, so the reply is the refusal" }[kind];
  const none = found ? "No knowledge is named in the text" : "Passages found";
  find("passages-title").textContent = decided ? `${passages.length === 1 ? "1 passage" : `${passages.length} passages`} found: ${decided}` : none;
  const nothing = kind === "refused" ? "Nothing in the documents is near it." : found ? "The model answers from its prompt alone." : "They are shown here with the first reply.";
  const shown = passages.map((one) => html("li", {}, html("div", {}, html("b", {}, one.title || one.url), html("small", {}, `relevance ${one.relevance}, ${one.url}`), one.text)));
  find("passages").replaceChildren(...(shown.length ? shown : [html("li", { class: "aside" }, nothing)]));
}

function numbers(data) {
  if (!data.prompt_tokens) return `The model was not asked: no token is charged. Found in ${Math.round(1000 * data.first)} ms${cited(data)}`;
  const speed = data.completion_tokens > 1 && data.seconds > data.first ? `, ${Math.round((data.completion_tokens - 1) / (data.seconds - data.first))} tokens/s` : "";
  return `${data.prompt_tokens} prompt tokens (${data.cached_tokens} cached), ${data.completion_tokens} of reply, first after ${Math.round(1000 * data.first)} ms${speed}, ended by ${data.finish}${cited(data)}`;
}

const cited = ({ citations }) => (citations.length ? `. From ${citations.map((one) => one.title).join("; ")}` : "");

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

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(send);
});
find("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  attempt(send);
});
find("stop").addEventListener("click", () => running?.abort());
find("clear").addEventListener("click", () => {
  startOver();
  find("question").focus();
});
for (const event of ["pointerover", "click"]) find("turns").addEventListener(event, ({ target }) => target.chances && choose(target));
find("turns").addEventListener("keydown", step);
