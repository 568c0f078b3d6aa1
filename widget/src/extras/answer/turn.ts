/** Builds the chunk for what a visitor can do with an answer: copy it, rate it with a comment, or have it written again. */
import type { Surroundings } from "../../chunks/contract.ts";
import type { Rating, Turn } from "../../conversation/turn.ts";
import { withoutPrototype } from "../../dom/document.ts";
import { detach, element, iconButton } from "../../dom/elements.ts";
import type { Texts } from "../../texts/languages/en.ts";
import type { Client } from "../../transport/client.ts";
import { copyButton } from "./copy-button.ts";
import { offerPerson } from "./person.ts";
import { ratingForm } from "./rating-form.ts";
import style from "./turn.css";

export { style };

const THUMB = "M7 11v9H4v-9zm0 0l4-8a2.3 2.3 0 0 1 2.5 2.6L13 9h5.5a2 2 0 0 1 2 2.4l-1.4 7A2 2 0 0 1 17 20H7";
const AGAIN = "M20 11a8 8 0 1 0-2.3 6.300M20 5v6h-6";

/** Creates the row of buttons with a place for the comment form below. */
export function answerActions(turn: Turn, environment: Surroundings, content: HTMLElement): HTMLElement {
  const { texts } = environment;
  const place = element("div");
  const up = iconButton("small up", texts.good, THUMB);
  const down = iconButton("small down", texts.bad, THUMB);
  const again = iconButton("small again once", texts.again, AGAIN);
  const showRating = (): void => {
    up.setAttribute("aria-pressed", String(turn.rating === "up"));
    down.setAttribute("aria-pressed", String(turn.rating === "down"));
  };
  /** Shows the rating at once and reverts it if storing fails; the visitor's comment stays in the form. */
  const store = async (rating: Rating, comment?: string, reasons?: string[]): Promise<boolean> => {
    const before = turn.rating;
    turn.rating = rating;
    showRating();
    if (await rate(environment.client, turn, place, comment, reasons)) return true;
    turn.rating = before;
    showRating();
    environment.announce(texts.unstored);
    (place.querySelector("form") ?? place).append(element("p", { class: "hint" }, texts.unstored));
    return false;
  };
  const toggle = (rating: Rating): void => {
    const chosen = turn.rating === rating ? null : rating;
    const send = async (comment: string, reasons: string[]): Promise<boolean> =>
      (!comment && !reasons.length && turn.rating === chosen) || store(chosen, comment, reasons);
    place.replaceChildren(...(chosen ? [ratingForm(environment, chosen === "down", chosen === "up" ? up : down, send)] : []));
    environment.followEnd();
    void store(chosen);
  };
  const edit = iconButton("small edit once", texts.edit, "M4 20l1-5L16 4l4 4L9 19zM13 7l4 4");
  edit.onclick = () => environment.edit(turn);
  up.onclick = () => toggle("up");
  down.onclick = () => toggle("down");
  again.onclick = () => environment.again(turn);
  showRating();
  const textActions = turn.text ? [copyButton(environment, texts.copy, () => turn.text, () => copiedHtml(content)), up, down] : [];
  const person = element("div");
  void offerPerson(environment, person);
  return element("div", {}, element("div", { class: "actions" }, ...textActions, again, edit, ...timeOfDay(turn.at, texts.code)), place, person);
}

/** Stores a rating and tells the page's listeners; resolves to whether the server has stored it. */
function rate(client: Client, turn: Turn, node: Node, comment: string | undefined, reasons: string[] | undefined): Promise<boolean> {
  const { skill, eventText } = client.settings;
  const fields = { reply: turn.replyId, rating: turn.rating, comment, reasons: reasons?.length ? reasons : undefined };
  const rated = client.post("feedback", fields, undefined, true);
  const detail = withoutPrototype({ rating: turn.rating, text: eventText ? (comment ?? "") : undefined, skill, reply: turn.replyId });
  const { host } = node.getRootNode() as ShadowRoot;
  host.dispatchEvent(new CustomEvent("skillchat:feedback", withoutPrototype({ bubbles: true, composed: true, detail })));
  return rated.then(() => true, () => false);
}

/** Shows when the question was asked, if that is known. */
function timeOfDay(at: number, language: string): HTMLElement[] {
  if (!at) return [];
  const shown = new Intl.DateTimeFormat(language, { timeStyle: "short" }).format(at);
  return [element("time", { datetime: new Date(at).toISOString() }, shown)];
}

/** Returns the answer's HTML for the clipboard, without the bars above code and without our attributes. */
function copiedHtml(content: HTMLElement): string {
  const copied = content.cloneNode(true) as HTMLElement;
  for (const bar of copied.querySelectorAll(".bar")) detach(bar);
  for (const node of copied.querySelectorAll("*")) {
    for (const name of node.getAttributeNames()) if (!/^(?:href|src|alt|start)$/.test(name)) node.removeAttribute(name);
  }
  return copied.innerHTML;
}

/** Answers of more characters are announced by their first sentence. */
const LONGEST_SPOKEN = 500;

/** Orca drops what changes in the same moment as much else. */
const QUIET_MS = 500;

/** Returns the answer as plain text for the announcement: whole, or its first sentence with how to read on. */
export async function spoken(content: HTMLElement, texts: Texts): Promise<string> {
  await new Promise((done) => setTimeout(done, QUIET_MS));
  let text = "";
  for (const block of content.children) {
    text += `${text && " "}${announcedText(block)}`;
    if (text.length > LONGEST_SPOKEN) return `${firstSentence(text, texts.code)} ${texts.long}`;
  }
  return text;
}

/** Reads a block as rendered, so that cells and items stay apart, and leaves out the bar above code. */
function announcedText(block: Element): string {
  return ((block.className === "code" ? block.lastElementChild : block) as HTMLElement).innerText;
}

function firstSentence(text: string, language: string): string {
  for (const { segment } of new Intl.Segmenter(language, { granularity: "sentence" }).segment(text)) return segment.trim();
  return text;
}
