/**
 * Speaks to the server by the protocol of docs/widget-protocol.md: one session at a time, and requests that carry its token.
 * No cookies; every failure leaves as a Problem, except an abort, which leaves as it came.
 */
import { bare } from "../dom/elements.ts";
import { list, member, number, read, text, write } from "./json.ts";
import { Problem, problemOf } from "./problem.ts";
import type { Settings } from "../dom/settings.ts";
import { EventReader, type ServerEvent } from "./sse.ts";
import { Store } from "./resume-store.ts";

export interface Session {
  token: string;
  resume: string;
  resumed: boolean;
  title: string;
  greeting: string;
  starters: string[];
  images: string[];
  /** The bytes of context that the server takes with a question. */
  most: number;
}

type Fields = Record<string, string | null | undefined>;

const PATIENCE_MS = 20_000;
/** The server says something every 15 seconds, be it only a comment: a stream that is silent for longer is dead. */
const SILENCE_MS = 45_000;

export class Client {
  /** A JWT by which the page's own server says who the visitor is, or what fetches a fresh one. */
  identity: unknown;
  readonly store: Store;
  /** Called when the server knows the conversation no more and begins another. */
  lost = (): void => {};
  #session: Promise<Session> | undefined;
  #resume = "";

  /** `base` is the folder that widget.js lies in, `ask` the browser's fetch as the loader found it. */
  constructor(
    readonly base: string,
    readonly settings: Settings,
    readonly ask: typeof fetch,
  ) {
    this.store = new Store(settings.persist, `skill-chat ${base} ${settings.skill}`);
    this.#resume = this.store.get();
  }

  /** The session, begun or continued if there is none; requests that wait share one. */
  session(): Promise<Session> {
    const begun = (this.#session ??= this.#begin());
    begun.catch(() => this.#session === begun && (this.#session = undefined));
    return begun;
  }

  /** Whether an earlier visit left a conversation. */
  get returning(): boolean {
    return this.#resume !== "";
  }

  /** Keep the conversation for the next page; called once the visitor has said something. */
  async keep(): Promise<void> {
    this.store.set((await this.session()).resume);
  }

  /** Drop the session. The next one shows the old secret, which also says whose page this is when its token has run out. */
  forget(): void {
    this.#session = undefined;
  }

  /** The response to a POST, which is waited for as long as `signal` lets; a session that has expired is continued once. */
  async post(path: string, fields: Fields | null, signal?: AbortSignal, keepalive = false): Promise<Response> {
    const send = async (session: Promise<Session>): Promise<Response> => {
      const { token } = await session;
      return this.#fetch(path, { body: fields && write(fields), signal: signal ?? AbortSignal.timeout(PATIENCE_MS), keepalive }, token);
    };
    const session = this.session();
    try {
      return await send(session);
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "session_expired") throw error;
      if (this.#session === session) this.forget(); // else another request has refreshed it meanwhile
      return await send(this.session());
    }
  }

  /** What a POST answers, as JSON. */
  async json(path: string, signal?: AbortSignal): Promise<unknown> {
    return read(await (await this.post(path, null, signal)).text());
  }

  /** The events of a stream; throws `cut` if it breaks. */
  async *events(path: string, fields: Fields | null, signal: AbortSignal): AsyncGenerator<ServerEvent> {
    const parser = new EventReader();
    let reader;
    try {
      const response = await alive(this.post(path, fields, signal));
      reader = response.body?.getReader?.();
      // A page's own fetch may hand out the whole body only.
      if (!reader) yield* parser.push(new TextEncoder().encode(await response.text()));
      for (let part; reader && !(part = await alive(reader.read())).done; ) yield* parser.push(part.value);
    } catch (error) {
      signal.throwIfAborted();
      throw error instanceof Problem ? error : new Problem("cut");
    } finally {
      reader?.cancel().catch(() => {}); // already closed, or closing because of the error that is on its way
    }
  }

  async #begin(): Promise<Session> {
    const { skill, key } = this.settings;
    const shown: unknown = typeof this.identity === "function" ? await this.identity() : this.identity;
    const identity = shown ? String(shown) : undefined;
    const fields = { skill, key: key || undefined, resume: this.#resume || undefined, identity };
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const response = await this.#fetch("session", { body: write(fields), signal });
    const session = sessionOf(read(await response.text()));
    if (this.#resume && !session.resumed) {
      this.store.clear();
      this.lost();
    }
    this.#resume = session.resume;
    return session;
  }

  async #fetch(path: string, options: RequestInit, token = ""): Promise<Response> {
    const headers: Record<string, string> = bare({});
    if (options.body) headers["Content-Type"] = "application/json";
    if (token) headers.Authorization = `Bearer ${token}`;
    const always = { method: "POST", credentials: "omit", referrerPolicy: "origin", headers } as const;
    let response;
    try {
      response = await this.ask.call(window, new URL(`v1/widget/${path}`, this.base), bare({ ...options, ...always }));
    } catch (error) {
      const { signal } = options;
      if (signal?.aborted && signal.reason?.name === "AbortError") throw error;
      throw new Problem(navigator.onLine ? "unreachable" : "offline", String(error));
    }
    if (!response.ok) throw await problemOf(response);
    return response;
  }
}

/** What is waited for, unless it is silent for too long. */
function alive<Value>(awaited: Promise<Value>): Promise<Value> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(reject, SILENCE_MS);
    awaited.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

function sessionOf(body: unknown): Session {
  const skill = member(body, "skill");
  return {
    token: text(member(body, "token")),
    resume: text(member(body, "resume")),
    resumed: member(body, "resumed") === true,
    title: text(member(skill, "title")),
    greeting: text(member(skill, "greeting")),
    starters: list(member(skill, "starters")).map(text).filter(Boolean),
    images: list(member(skill, "image_origins")).map(text),
    most: number(member(member(body, "limits"), "context_bytes")),
  };
}
