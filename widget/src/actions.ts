/** What can be done with an answer: copy it, have it made again, and say whether it was good, with a comment. */
import type { Around } from "./answer.ts";
import type { Rating, Turn } from "./conversation.ts";
import { copyButton } from "./copy.ts";
import { button, drop, element } from "./dom.ts";

const UP = "M7 11v9H4v-9zm0 0l4-8a2.3 2.3 0 0 1 2.5 2.6L13 9h5.5a2 2 0 0 1 2 2.4l-1.4 7A2 2 0 0 1 17 20H7";
const AGAIN = "M20 11a8 8 0 1 0-2.3 6.300M20 5v6h-6";

/** The server takes a thousand bytes; a character may have three. */
const MOST = "333";

/** A row of buttons, and under it the place of the comment. */
export function actions(turn: Turn, around: Around): HTMLElement {
  const { texts } = around;
  const place = element("div");
  const up = button("small up", texts.good, UP);
  const down = button("small down", texts.bad, UP);
  const again = button("small again", texts.again, AGAIN);
  const show = (): void => {
    up.setAttribute("aria-pressed", String(turn.rating === "up"));
    down.setAttribute("aria-pressed", String(turn.rating === "down"));
  };
  const rate = async (rating: Rating): Promise<void> => {
    const before = turn.rating;
    turn.rating = before === rating ? null : rating;
    show();
    place.replaceChildren(...(turn.rating ? [commentForm(turn, around, turn.rating === "up" ? up : down)] : []));
    around.follow();
    if (await around.rate(turn)) return;
    turn.rating = before;
    show();
    place.replaceChildren(told(around, texts.unstored));
  };
  up.onclick = () => void rate("up");
  down.onclick = () => void rate("down");
  again.onclick = () => around.again(turn);
  show();
  const judged = turn.text ? [copyButton(around, texts.copy, () => turn.text), up, down] : [];
  return element("div", {}, element("div", { class: "actions" }, ...judged, again), place);
}

/** A line that is also read out. */
function told(around: Around, words: string): HTMLElement {
  around.announce(words);
  return element("p", { class: "hint" }, words);
}

/** The form goes with Escape or when it was sent, and the focus goes back to the rating. */
function commentForm(turn: Turn, around: Around, rated: HTMLElement): HTMLElement {
  const { texts } = around;
  const field = element("textarea", { rows: "2", maxlength: MOST, "aria-label": texts.comment, placeholder: texts.comment });
  const form = element("form", { class: "comment" }, field, element("button", { class: "retry" }, texts.sendComment));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const comment = field.value.trim();
    drop(form.querySelector("p"));
    if (comment && !(await around.rate(turn, comment))) return form.append(told(around, texts.unstored));
    form.replaceWith(told(around, texts.thanks));
    rated.focus();
  });
  form.addEventListener("dismiss", () => {
    drop(form);
    rated.focus();
  });
  return form;
}
