/** Offers what a visitor can do with an answer: copy it, rate it with a comment, or have it written again. */
import type { Rating, Turn } from "../conversation/turn.ts";
import { detach, element, iconButton } from "../dom/elements.ts";
import type { AnswerEnvironment } from "./answer.ts";
import { copyButton } from "./copy-button.ts";

const THUMB = "M7 11v9H4v-9zm0 0l4-8a2.3 2.3 0 0 1 2.5 2.6L13 9h5.5a2 2 0 0 1 2 2.4l-1.4 7A2 2 0 0 1 17 20H7";
const AGAIN = "M20 11a8 8 0 1 0-2.3 6.300M20 5v6h-6";

/** The server accepts 1,000 bytes, and a UTF-16 unit takes at most three in UTF-8. */
const MAX_COMMENT_LENGTH = "333";

/** Creates the row of buttons with a place for the comment form below. */
export function answerActions(turn: Turn, environment: AnswerEnvironment): HTMLElement {
  const { texts } = environment;
  const commentPlace = element("div");
  const up = iconButton("small up", texts.good, THUMB);
  const down = iconButton("small down", texts.bad, THUMB);
  const again = iconButton("small again", texts.again, AGAIN);
  const showRating = (): void => {
    up.setAttribute("aria-pressed", String(turn.rating === "up"));
    down.setAttribute("aria-pressed", String(turn.rating === "down"));
  };
  /** Shows the rating at once and reverts it if storing fails; the visitor's comment stays in the form. */
  const store = async (rating: Rating, comment?: string): Promise<boolean> => {
    const before = turn.rating;
    turn.rating = rating;
    showRating();
    if (await environment.rate(turn, comment)) return true;
    turn.rating = before;
    showRating();
    (commentPlace.querySelector("form") ?? commentPlace).append(announcedHint(environment, texts.unstored));
    return false;
  };
  const toggle = (rating: Rating): void => {
    const chosen = turn.rating === rating ? null : rating;
    const storeComment = async (comment: string): Promise<boolean> => (!comment && turn.rating === chosen) || store(chosen, comment);
    commentPlace.replaceChildren(...(chosen ? [commentForm(environment, chosen === "up" ? up : down, storeComment)] : []));
    environment.followEnd();
    void store(chosen);
  };
  up.onclick = () => toggle("up");
  down.onclick = () => toggle("down");
  again.onclick = () => environment.again(turn);
  showRating();
  const textActions = turn.text ? [copyButton(environment, texts.copy, () => turn.text), up, down] : [];
  return element("div", {}, element("div", { class: "actions" }, ...textActions, again), commentPlace);
}

/** Announces `text` to screen readers and returns it as a line. */
function announcedHint(environment: AnswerEnvironment, text: string): HTMLElement {
  environment.announce(text);
  return element("p", { class: "hint" }, text);
}

/** Creates the comment form; Escape or a stored comment closes it and returns the focus to the rating button. */
function commentForm(environment: AnswerEnvironment, ratingButton: HTMLElement, store: (comment: string) => Promise<boolean>): HTMLElement {
  const { texts } = environment;
  const field = element("textarea", { rows: "2", maxlength: MAX_COMMENT_LENGTH, "aria-label": texts.comment, placeholder: texts.comment });
  const form = element("form", { class: "comment" }, field, element("button", { class: "retry" }, texts.sendComment));
  form.onsubmit = async (event) => {
    event.preventDefault();
    detach(form.querySelector("p"));
    if (!(await store(field.value.trim()))) return;
    form.replaceWith(announcedHint(environment, texts.thanks));
    ratingButton.focus();
  };
  form.addEventListener("dismiss", () => {
    detach(form);
    ratingButton.focus();
  });
  return form;
}
