/**
 * Speaks to the server: what a skill calls itself, and an answer piece by piece.
 * No cookies, no storage; every failure leaves as a Problem, except an abort, which leaves as it came.
 */
import { Problem, problemOf } from "./problem.ts";
import { EventReader } from "./sse.ts";

export interface Message {
  role: "user" | "assistant";
  content: string;
}

export interface Skill {
  title: string;
  greeting: string;
}

/** A piece of an answer; `full` says that the answer ended because it reached its length limit. */
export interface Piece {
  text: string;
  full: boolean;
}

export class Client {
  /** `base` is the folder that widget.js lies in. */
  constructor(
    readonly base: string,
    readonly skill: string,
  ) {}

  /** The skill's title and greeting, both plain text. */
  async about(signal: AbortSignal): Promise<Skill> {
    const response = await this.#fetch(`v1/skills/${encodeURIComponent(this.skill)}`, { signal });
    const body = await response.json().catch(() => null);
    return { title: text(body?.title), greeting: text(body?.greeting) };
  }

  /** The answer to the last message; throws `cut` if the stream ends before the server says that it is over. */
  async *answer(messages: Message[], signal: AbortSignal): AsyncGenerator<Piece> {
    const response = await this.#fetch("v1/chat/completions", {
      signal,
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: requestBody(this.skill, messages),
    });
    for await (const data of events(response, signal)) {
      if (data === "[DONE]") return;
      yield piece(data);
    }
    throw new Problem("cut");
  }

  async #fetch(path: string, options: RequestInit): Promise<Response> {
    let response;
    try {
      response = await fetch(new URL(path, this.base), { ...options, credentials: "omit", referrerPolicy: "origin" });
    } catch (error) {
      options.signal?.throwIfAborted();
      throw new Problem(navigator.onLine ? "unreachable" : "offline", String(error));
    }
    if (!response.ok) throw await problemOf(response);
    return response;
  }
}

/** Written by hand because old Prototype.js gives arrays a `toJSON` that breaks JSON.stringify; strings are immune. */
function requestBody(skill: string, messages: Message[]): string {
  const list = messages.map(({ role, content }) => `{"role":"${role}","content":${JSON.stringify(content)}}`);
  const usage = `"stream":true,"stream_options":{"include_usage":true}`;
  return `{"model":${JSON.stringify(skill)},"messages":[${list.join()}],${usage}}`;
}

async function* events(response: Response, signal: AbortSignal): AsyncGenerator<string> {
  const reader = response.body?.getReader();
  const parser = new EventReader();
  try {
    for (let part; reader && !(part = await reader.read()).done; ) yield* parser.push(part.value);
  } catch {
    signal.throwIfAborted();
    throw new Problem("cut");
  } finally {
    reader?.cancel().catch(() => {}); // already closed, or closing because of the error that is on its way
  }
}

function piece(data: string): Piece {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new Problem("failed");
  }
  if (chunk?.error) throw new Problem("failed");
  const choice = chunk?.choices?.[0];
  return { text: text(choice?.delta?.content), full: choice?.finish_reason === "length" };
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}
