/** What can be done with an answer: copy it, have it made again, and say whether it was good, with a comment. */
import type { Around } from "./answer.ts";
import type { Rating, Turn } from "../conversation/conversation.ts";
import { copyButton } from "./copy-button.ts";
import { button, drop, element } from "../dom/elements.ts";

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
  /** Shown as given while it is being stored, and as before if it could not be; what the visitor wrote stays. */
  const give = async (rating: Rating, comment?: string): Promise<boolean> => {
    const before = turn.rating;
    turn.rating = rating;
    show();
    if (await around.rate(turn, comment)) return true;
    turn.rating = before;
    show();
    (place.querySelector("form") ?? place).append(told(around, texts.unstored));
    return false;
  };
  const rate = (rating: Rating): void => {
    const given = turn.rating === rating ? null : rating;
    const say = async (comment: string): Promise<boolean> => (!comment && turn.rating === given) || give(given, comment);
    place.replaceChildren(...(given ? [commentForm(around, given === "up" ? up : down, say)] : []));
    around.follow();
    void give(given);
  };
  up.onclick = () => rate("up");
  down.onclick = () => rate("down");
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
function commentForm(around: Around, rated: HTMLElement, say: (comment: string) => Promise<boolean>): HTMLElement {
  const { texts } = around;
  const field = element("textarea", { rows: "2", maxlength: MOST, "aria-label": texts.comment, placeholder: texts.comment });
  const form = element("form", { class: "comment" }, field, element("button", { class: "retry" }, texts.sendComment));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    drop(form.querySelector("p"));
    if (!(await say(field.value.trim()))) return;
    form.replaceWith(told(around, texts.thanks));
    rated.focus();
  });
  form.addEventListener("dismiss", () => {
    drop(form);
    rated.focus();
  });
  return form;
}
