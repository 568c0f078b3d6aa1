/**
 * Makes elements; the names are always ours, and texts go in as text nodes.
 * A page's own elements may hide the document's members behind their names (`<form name="createElement">`), and its scripts
 * may put members on every object, so members are taken from the prototype and options have none.
 */

/** What the document itself has under this name. */
export function page<Name extends keyof Document>(name: Name): Document[Name] {
  const value: unknown = Reflect.get(Reflect.getPrototypeOf(document)!, name, document);
  // Not by its `bind`, which old libraries replace.
  return (typeof value === "function" ? (...given: unknown[]) => value.call(document, ...given) : value) as Document[Name];
}

/** An object that inherits nothing, for the browser's functions, which also read what is inherited. */
export function bare<Value extends object>(value: Value): Value {
  return Object.assign(Object.create(null), value);
}

export function element<Name extends string>(
  name: Name,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): Name extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[Name] : HTMLElement {
  const made = page("createElement")(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made as ReturnType<typeof element<Name>>;
}

/** Take a node away if it is there; the `remove` that Prototype.js gives every element throws where it is not. */
export function drop(node?: Node | null): void {
  node?.parentNode?.removeChild(node);
}

/** A link to an allowed address: a page opens apart from this one, which learns nothing of the visitor. */
export function anchor(href: string, ...children: (Node | string)[]): HTMLElement {
  const target = href.startsWith("http") ? "_blank" : "_self"; // a mail or a call needs no page
  return element("a", { href, target, rel: "noopener noreferrer nofollow" }, ...children);
}

/** A 24 px icon drawn with one stroked path. */
export function icon(path: string): SVGElement {
  const make = page("createElementNS");
  const svg = make("http://www.w3.org/2000/svg", "svg");
  const line = make("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** Put a stylesheet on a shadow root; unlike a style element, this needs no permission by the page's policy. */
export function adopt(root: ShadowRoot, css: string): void {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css);
  root.adoptedStyleSheets.push(sheet);
}

/** A round button with an icon; its label is also its tooltip. */
export function button(name: string, label: string, path: string, type = "button"): HTMLButtonElement {
  return element("button", { type, class: `round ${name}`, "aria-label": label, title: label }, icon(path));
}

/** Listen, before anyone else of the same target, until the signal. */
export function listen(target: EventTarget, name: string, heard: (event: Event) => void, signal: AbortSignal): void {
  target.addEventListener(name, heard, bare({ capture: true, signal }));
}
