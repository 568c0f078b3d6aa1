/** Which addresses of a model's text may become links: absolute, of a harmless kind, and without a name before an `@`. */
const KINDS = ["https:", "http:", "mailto:", "tel:"];

/** The address as the browser will read it, or an empty string if it may not become a link. */
export function allowed(address: string): string {
  let url;
  try {
    url = new URL(address);
  } catch {
    return "";
  }
  return KINDS.includes(url.protocol) && !url.username && !url.password ? url.href : "";
}
