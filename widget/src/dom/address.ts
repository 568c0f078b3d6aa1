/** Decides which addresses in a reply may become links. */
const SCHEMES = ["https:", "http:", "mailto:", "tel:"];

/** Normalises an absolute URL; returns an empty string if its scheme is not allowed or it carries credentials. */
export function safeAddress(address: string): string {
  let url;
  try {
    url = new URL(address);
  } catch {
    return "";
  }
  return SCHEMES.includes(url.protocol) && !url.username && !url.password ? url.href : "";
}
