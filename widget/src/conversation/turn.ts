/** Models one question and its reply, new or restored from the server. */
import { safeAddress } from "../dom/address.ts";
import { asArray, asNumber, asString, property } from "../transport/json.ts";

export interface Citation {
  title: string;
  address: string;
  /** The quoted text that supports the reply, or empty. */
  passage: string;
}

export type Rating = "up" | "down" | null;

export interface Turn {
  question: string;
  /** Idempotency key of the question: the server answers a repeated request once. */
  messageId: string;
  /** Server id of the reply that this one replaces, or empty. */
  replacedReplyId: string;
  /** Server id of the reply; empty until it starts. */
  replyId: string;
  text: string;
  /** Why the reply ended; null while it streams. */
  finishReason: string | null;
  /** Id of the next event to read. */
  nextEvent: number;
  citations: Citation[];
  rating: Rating;
  /** When it was asked, in milliseconds since 1970; 0 if that is unknown. */
  at: number;
}

export function newTurn(question: string, replacedReplyId = ""): Turn {
  return { question, messageId: randomId(), replacedReplyId, replyId: "", text: "", finishReason: null, nextEvent: 0, citations: [], rating: null, at: Date.now() };
}

/** Parses a turn of the server's conversation. */
export function parseTurn(value: unknown): Turn {
  const reply = property(value, "reply");
  const rating = property(reply, "rating");
  const finish = property(reply, "finish");
  return {
    question: asString(property(value, "question")),
    messageId: "",
    replacedReplyId: "",
    replyId: asString(property(reply, "id")),
    text: asString(property(reply, "text")),
    finishReason: typeof finish === "string" ? finish : null,
    nextEvent: asNumber(property(reply, "next")),
    citations: parseCitations(reply),
    rating: rating === "up" || rating === "down" ? rating : null,
    at: asNumber(property(value, "asked_at")) * 1000,
  };
}

/** Parses citations and drops the ones without a safe web address. */
export function parseCitations(value: unknown): Citation[] {
  const citations = asArray(property(value, "citations")).map((citation) => {
    const address = safeAddress(asString(property(citation, "url")));
    const passage = asString(property(citation, "passage"));
    return { title: asString(property(citation, "title")) || address, address, passage };
  });
  return citations.filter(({ address }) => address.startsWith("http"));
}

/** Avoids Math.random, which pages replace by a constant for screenshots. */
function randomId(): string {
  return crypto.getRandomValues(new Uint32Array(2)).join("-");
}
