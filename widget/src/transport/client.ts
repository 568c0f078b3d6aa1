/**
 * Speaks the protocol of docs/reference/widget-protocol.md: one session at a time, whose token each request carries.
 * Sends no cookies; rejects with a Problem, or with the abort's reason if the caller aborted.
 */
import { withoutPrototype } from "../dom/document.ts";
import type { Settings } from "../dom/settings.ts";
import { asArray, asNumber, asString, parseJson, property, stringifyFields, type Fields } from "./json.ts";
import { Problem, responseProblem } from "./problem.ts";
import { VisitStore } from "./visit-store.ts";
import { EventStreamParser, type ServerEvent } from "./sse.ts";

export interface Session {
  token: string;
  /** The secret that continues this conversation in a later session. */
  resume: string;
  /** Whether the session continues an earlier conversation. */
  resumed: boolean;
  /** What the server says of the skill. */
  skill: unknown;
  title: string;
  greeting: string;
  starters: string[];
  /** Questions to offer after an answer. */
  followUps: string[];
  imageOrigins: string[];
  /** The largest context, in bytes, that the server accepts with a question. */
  contextLimit: number;
  /** The largest question, in bytes. */
  textLimit: number;
}

const REQUEST_TIMEOUT_MS = 20_000;
/** Three times the interval of the server's keep-alive comments. */
const IDLE_TIMEOUT_MS = 45_000;

export class Client {
  /** A JWT that identifies the visitor, or a function that returns a fresh one. */
  identity: unknown;
  readonly store: VisitStore;
  /** Called when the server has lost the conversation and started another. */
  onConversationLost = (): void => {};
  #session: Promise<Session> | undefined;
  #resume = "";

  /** `base` is the URL of widget.js's folder, `fetcher` the fetch that the loader captured. */
  constructor(
    readonly base: string,
    readonly settings: Settings,
    readonly fetcher: typeof fetch,
  ) {
    this.store = new VisitStore(settings.persistence, `skill-chat ${base} ${settings.skill}`);
    this.#resume = this.store.read().resume;
  }

  /** Returns the session, starting or resuming one if needed; concurrent callers share it. */
  session(): Promise<Session> {
    const session = (this.#session ??= this.#startSession());
    session.catch(() => this.#session === session && (this.#session = undefined));
    return session;
  }

  /** Whether there is a conversation to resume. */
  get resumable(): boolean {
    return this.#resume !== "";
  }

  /** Stores the conversation's secret for the next page; called once the visitor has sent something. */
  async saveConversation(): Promise<void> {
    this.store.write({ resume: (await this.session()).resume });
  }

  /** Ends the session. The next one sends the secret, which also vouches for the visitor once the JWT has expired. */
  dropSession(): void {
    this.#session = undefined;
  }

  /** Sends a POST, by default with a timeout; renews an expired session once. */
  async post(path: string, fields: Fields | null, signal?: AbortSignal, keepalive = false): Promise<Response> {
    const send = async (session: Promise<Session>): Promise<Response> => {
      const { token } = await session;
      return this.#fetch(path, { body: fields && stringifyFields(fields), signal: signal ?? AbortSignal.timeout(REQUEST_TIMEOUT_MS), keepalive }, token);
    };
    const session = this.session();
    try {
      return await send(session);
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "session_expired") throw error;
      if (this.#session === session) this.dropSession(); // unless another request has renewed it
      return await send(this.session());
    }
  }

  /** Sends a POST without a body and parses the response as JSON. */
  async postForJson(path: string): Promise<unknown> {
    return parseJson(await (await this.post(path, null)).text());
  }

  /** Yields the events of a stream; throws the problem `cut` if it breaks. */
  async *events(path: string, fields: Fields | null, signal: AbortSignal): AsyncGenerator<ServerEvent> {
    const parser = new EventStreamParser();
    let reader;
    try {
      const response = await withIdleTimeout(this.post(path, fields, signal));
      reader = response.body?.getReader?.();
      // A polyfilled fetch may offer only the whole body.
      if (!reader) yield* parser.push(new TextEncoder().encode(await response.text()));
      for (let part; reader && !(part = await withIdleTimeout(reader.read())).done; ) yield* parser.push(part.value);
    } catch (error) {
      signal.throwIfAborted();
      throw error instanceof Problem ? error : new Problem("cut");
    } finally {
      reader?.cancel().catch(() => {}); // may be closed already, or closing with the error being thrown
    }
  }

  async #startSession(): Promise<Session> {
    const { skill, key } = this.settings;
    const identity: unknown = typeof this.identity === "function" ? await this.identity() : this.identity;
    const fields = { skill, key: key || undefined, resume: this.#resume || undefined, identity: identity ? String(identity) : undefined };
    const signal = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
    const response = await this.#fetch("session", { body: stringifyFields(fields), signal });
    const session = parseSession(parseJson(await response.text()));
    if (this.#resume && !session.resumed) {
      this.store.write({ resume: "" });
      this.onConversationLost();
    }
    this.#resume = session.resume;
    return session;
  }

  async #fetch(path: string, options: RequestInit, token = ""): Promise<Response> {
    const headers: Record<string, string> = withoutPrototype({});
    if (options.body) headers["Content-Type"] = "application/json";
    if (token) headers.Authorization = `Bearer ${token}`;
    const common = { method: "POST", credentials: "omit", referrerPolicy: "origin", headers } as const;
    let response;
    try {
      response = await this.fetcher.call(window, new URL(`v1/widget/${path}`, this.base), withoutPrototype({ ...options, ...common }));
    } catch (error) {
      const { signal } = options;
      if (signal?.aborted && signal.reason?.name === "AbortError") throw error;
      throw new Problem(navigator.onLine ? "unreachable" : "offline", String(error));
    }
    if (!response.ok) throw await responseProblem(response);
    return response;
  }
}

/** Rejects if the promise takes longer than the idle timeout. */
function withIdleTimeout<Value>(promise: Promise<Value>): Promise<Value> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(reject, IDLE_TIMEOUT_MS);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

function parseSession(body: unknown): Session {
  const skill = property(body, "skill");
  return {
    token: asString(property(body, "token")),
    resume: asString(property(body, "resume")),
    resumed: property(body, "resumed") === true,
    skill,
    title: asString(property(skill, "title")),
    greeting: asString(property(skill, "greeting")),
    starters: asArray(property(skill, "starters")).map(asString).filter(Boolean),
    followUps: asArray(property(skill, "follow_ups")).map(asString).filter(Boolean),
    imageOrigins: asArray(property(skill, "image_origins")).map(asString),
    contextLimit: asNumber(property(property(body, "limits"), "context_bytes")),
    textLimit: asNumber(property(property(body, "limits"), "text_bytes")),
  };
}
