/** Gives the chat the logo, the avatar and the colour of the header that the page names. */
import { addStylesheet, element } from "../../dom/elements.ts";
import style from "./look.css";

/** Decorates the panel of `root`. */
export function decorate(root: ShadowRoot, panel: HTMLElement): void {
  const { host } = root;
  addStylesheet(root, style);
  const [logo, avatar, header] = ["logo", "avatar", "header"].map((name) => host.getAttribute(`data-${name}`) ?? host.getAttribute(name));
  const picture = (address: string, name: string): HTMLElement => element("img", { class: name, alt: "", src: new URL(address, location.href).href });
  if (logo) panel.querySelector(".head")?.prepend(picture(logo, "logo"));
  if (header) panel.classList.add("coloured");
  if (!avatar) return;
  panel.classList.add("faces");
  const log = panel.querySelector(".log")!;
  const show = (): void => {
    for (const answer of log.querySelectorAll(".answer:not(:has(> .avatar))")) answer.prepend(picture(avatar, "avatar"));
  };
  new MutationObserver(show).observe(log, { __proto__: null, childList: true, subtree: true } as MutationObserverInit);
  show();
}
