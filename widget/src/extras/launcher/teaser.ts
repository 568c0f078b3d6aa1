/** Shows the line that invites a visitor once, beside the launcher. */
import { documentMember } from "../../dom/document.ts";
import { addStylesheet, detach, element, iconButton } from "../../dom/elements.ts";
import themeStyle from "../../panel/styles/theme.css";
import style from "./teaser.css";

const DEFAULT_SECONDS = 8;

/** What the page and the language say about the teaser. */
interface Invitation {
  text: string;
  /** Seconds to wait, and the selector of an element that has to come into view first. */
  after: string;
  at: string;
  dismiss: string;
  left: boolean;
}

/** Shows the line beside the launcher after its time or at its place; `open` opens the chat, `seen` is called when the visitor used the line. */
export function showTeaser(root: ShadowRoot, launcher: HTMLElement, invitation: Invitation, open: () => void, seen: () => void): void {
  addStylesheet(root, themeStyle + style);
  const text = element("button", { type: "button", class: "invite", dir: "auto" }, invitation.text);
  const close = iconButton("small", invitation.dismiss, "M6 6l12 12M18 6L6 18");
  const box = element("div", { class: invitation.left ? "teaser left" : "teaser", part: "teaser", role: "region", "aria-label": invitation.text }, text, close);
  const finish = (): void => {
    detach(box);
    seen();
    launcher.removeEventListener("click", finish);
  };
  const show = (): void => {
    if (!launcher.hidden && launcher.isConnected) launcher.after(box);
  };
  text.onclick = () => {
    finish();
    open();
  };
  close.onclick = () => {
    finish();
    launcher.focus();
  };
  launcher.addEventListener("click", finish);
  const place = invitation.at && documentMember("querySelector")(invitation.at);
  if (!place) return void setTimeout(show, 1000 * (Number.parseFloat(invitation.after) || DEFAULT_SECONDS));
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    setTimeout(show, 1000 * (Number.parseFloat(invitation.after) || 0));
  }).observe(place);
}
