/**
 * widget.js: finds its own script line, puts a launcher on the page, and loads the app when the visitor wants it.
 * Until then it asks for nothing, stores nothing and adds nothing to the page but one element.
 */
import { adopt, element, icon } from "./dom.ts";
import style from "./launcher.css";

const TAG = "skill-chat";

/** Tag managers and modules leave no current script; then the line is found by its attributes. */
const script =
  document.currentScript instanceof HTMLScriptElement
    ? document.currentScript
    : document.querySelector<HTMLScriptElement>('script[data-skill][src*="widget.js"]');

/** Beside the body rather than in it, so that it survives pages that replace their body. */
function place(base: string, skill: string): void {
  if (document.querySelector(`html > ${TAG}`)) return;
  const host = element(TAG);
  const root = host.attachShadow({ mode: "open" });
  adopt(root, style);
  root.append(launcher(root, base, skill));
  document.documentElement.append(host);
  if (!host.showPopover) return;
  host.popover = "manual"; // the top layer: nothing on the page can cover it
  host.showPopover();
}

function launcher(root: ShadowRoot, base: string, skill: string): HTMLButtonElement {
  const label = { type: "button", class: "launcher", "aria-label": "Open chat", "aria-haspopup": "dialog" };
  const button = element("button", { ...label, "aria-expanded": "false" });
  button.append(icon("M21 11.5a8.4 8.4 0 0 1-12.3 7.4L3 21l2.1-5.7A8.4 8.4 0 1 1 21 11.5z"));
  let chat: Promise<{ open(): void }> | undefined;
  button.addEventListener("click", async () => {
    root.querySelector(".trouble")?.remove();
    button.setAttribute("aria-busy", "true");
    try {
      chat ??= import(`${base}assets/${APP_FILE}`).then((app) => app.start(root, button, base, skill));
      (await chat).open();
    } catch {
      chat = undefined;
      root.append(element("div", { class: "trouble", role: "alert" }, "The chat could not be loaded. Please try again."));
    }
    button.removeAttribute("aria-busy");
  });
  return button;
}

const skill = script?.dataset.skill;
if (!script || !skill) {
  console.error("Secateur: the script line needs data-skill, for example <script async src=\"…/widget.js\" data-skill=\"help\">");
} else {
  const base = new URL(".", script.src).href;
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", () => place(base, skill));
  else place(base, skill);
}
