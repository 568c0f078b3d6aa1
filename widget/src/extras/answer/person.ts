/** Offers what comes after the chat: its transcript as a file, and a person, who is sent only what the visitor sees here. */
import type { Surroundings } from "../../chunks/contract.ts";
import { safeAddress } from "../../dom/address.ts";
import { detach, element } from "../../dom/elements.ts";
import { asString, property } from "../../transport/json.ts";

/** Mail programs cut longer bodies. */
const LONGEST_MAIL = 1500;

/** Adds the offers below the latest answer, in `place`. */
export async function offerPerson({ texts, client, announce, followEnd }: Surroundings, place: HTMLElement): Promise<void> {
  const { skill } = await client.session();
  const handover = property(skill, "handover");
  const [kind, address] = [asString(property(handover, "kind")), asString(property(handover, "address"))];
  const download = element("button", { type: "button", class: "quiet" }, texts.download);
  download.onclick = () => {
    const url = URL.createObjectURL(new Blob([transcript(place)], { __proto__: null, type: "text/plain" } as BlobPropertyBag));
    element("a", { href: url, download: "chat.txt" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };
  place.className = "person once";
  const offers: HTMLElement[] = [download];
  if (kind) {
    const ask = element("button", { type: "button", class: "quiet" }, texts.person);
    ask.onclick = () => {
      const form = personForm();
      place.append(form);
      form.querySelector<HTMLElement>("textarea, button, a")?.focus();
      followEnd();
    };
    offers.unshift(ask);
  }
  place.append(...offers);

  /** Shows what is sent, and sends it only from there. */
  function personForm(): HTMLElement {
    detach(place.querySelector("form"));
    const text = transcript(place);
    const sent = element("textarea", { rows: "6", readonly: "", "aria-label": texts.transcript });
    sent.value = text;
    const cancel = element("button", { type: "button", class: "retry" }, texts.cancel);
    const form = element("form", { class: "comment" });
    const close = (): void => {
      detach(form);
      offers[0]!.focus();
    };
    cancel.onclick = close;
    form.addEventListener("dismiss", close);
    if (kind === "webhook") {
      const note = element("textarea", { rows: "2", maxlength: "333", "aria-label": texts.note, placeholder: texts.note });
      const contact = element("textarea", { rows: "1", maxlength: "200", "aria-label": texts.contact, placeholder: texts.contact });
      form.append(element("p", { class: "hint" }, texts.isSent), sent, note, contact, row(cancel, element("button", { class: "retry" }, texts.sendPerson)));
      form.onsubmit = async (event) => {
        event.preventDefault();
        const done = await client.post("handover", { note: note.value.trim(), contact: contact.value.trim() }).then(() => true, () => false);
        const message = done ? texts.handedOver : texts.notHandedOver;
        announce(message);
        if (done) form.replaceWith(element("p", { class: "hint" }, message));
        else form.append(element("p", { class: "hint" }, message));
      };
      return form;
    }
    const target = kind === "mail" ? safeAddress(`mailto:${address}?body=${encodeURIComponent(text.slice(-LONGEST_MAIL))}`) : safeAddress(address);
    if (kind === "mail") form.append(element("p", { class: "hint" }, texts.isSent), sent);
    form.append(row(cancel, element("a", { class: "retry", href: target, target: "_blank", rel: "noopener noreferrer" }, kind === "mail" ? texts.sendMail : texts.openPage)));
    return form;
  }
}

const row = (...nodes: Node[]): HTMLElement => element("div", { class: "row" }, ...nodes);

/** Returns the conversation as plain text, as the log shows it. */
function transcript(place: HTMLElement): string {
  const turns = place.closest(".log")!.querySelectorAll<HTMLElement>(".question, .answer");
  const lines = [...turns].map((turn) => {
    const speaker = turn.querySelector(".unseen")?.textContent ?? "";
    const body = turn.className === "question" ? turn.textContent!.slice(speaker.length) : (turn.querySelector<HTMLElement>(".text")?.innerText ?? "");
    return `${speaker}:\n${body.trim()}`;
  });
  return lines.join("\n\n");
}
