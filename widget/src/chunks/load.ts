/** Loads rare code on first use, for all chats of the page. */
import { addStylesheet } from "../dom/elements.ts";
import type { Extras } from "./contract.ts";
import { importer } from "./files.ts";

const styled = new WeakMap<object, ShadowRoot[]>();

/** Loads a chunk and adds its stylesheet once to the shadow root of `node`; rejects if it cannot be loaded. */
export async function loadExtra<Name extends keyof Extras>(name: Name, node: Node): Promise<Extras[Name]> {
  const extra = await importer(name);
  const root = node.getRootNode() as ShadowRoot;
  const roots = styled.get(extra) ?? [];
  if (root.adoptedStyleSheets && !roots.includes(root)) {
    styled.set(extra, [...roots, root]);
    addStylesheet(root, extra.style);
  }
  return extra;
}
