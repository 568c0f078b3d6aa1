/** Builds elements without parsing HTML: names are constants and texts become text nodes. */
import { documentMember } from "./document.ts";

/** Creates an element with attributes and children. */
export function element<Name extends string>(
  name: Name,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): Name extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[Name] : HTMLElement {
  const created = documentMember("createElement")(name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  created.append(...children);
  return created as ReturnType<typeof element<Name>>;
}

/** Removes a node if it has a parent. Prototype.js overrides `remove` with one that throws on orphans. */
export function detach(node?: Node | null): void {
  node?.parentNode?.removeChild(node);
}

/** Creates a link that opens web pages in a new tab and sends no referrer; `href` must be a safe address. */
export function link(href: string, ...children: (Node | string)[]): HTMLElement {
  const target = href.startsWith("http") ? "_blank" : "_self"; // mail and phone links need no tab
  return element("a", { href, target, rel: "noopener noreferrer nofollow" }, ...children);
}

/** Creates a 24 px icon from one stroked path. */
export function icon(path: string): SVGElement {
  const create = documentMember("createElementNS");
  const svg = create("http://www.w3.org/2000/svg", "svg");
  const line = create("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** Adds a constructed stylesheet, which the page's Content-Security-Policy does not restrict. */
export function addStylesheet(root: DocumentOrShadowRoot, css: string): void {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css);
  root.adoptedStyleSheets.push(sheet);
}

/** Creates a round icon button with `label` as its accessible name and tooltip. */
export function iconButton(name: string, label: string, path: string, type = "button"): HTMLButtonElement {
  return element("button", { type, class: `round ${name}`, "aria-label": label, title: label }, icon(path));
}
