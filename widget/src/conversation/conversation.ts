/** Follows one reply at a time across broken connections; the server keeps the conversation itself. */
import type { Client } from "../transport/client.ts";
import { asArray, asNumber, asString, parseJson, property } from "../transport/json.ts";
import { Problem, toProblem } from "../transport/problem.ts";
import type { ServerEvent } from "../transport/sse.ts";
import { endingFor, type Ending } from "./ending.ts";
import { parseCitations, parseTurn, type Turn } from "./turn.ts";

interface ReplyObserver {
  /** Called when the turn may have more text. */
  updated(): void;
  /** Called with true before the wait for a reconnection, and with false after it. */
  reconnecting(active: boolean): void;
}

const RETRY_DELAYS_MS = [300, 1000, 2000, 4000, 8000, 8000];
const STOP_TIMEOUT_MS = 5000;

export class Conversation {
  /** What the page says about itself, sent with each question. */
  context: string | undefined;
  #reading: AbortController | undefined;
  #stopping: Turn | undefined;

  constructor(readonly client: Client) {}

  /** Fetches the turns of an earlier page; the last one may still be streaming. */
  async restore(): Promise<Turn[]> {
    const body = await this.client.postForJson("conversation");
    return asArray(property(body, "turns")).map(parseTurn);
  }

  /** Asks the question, or resumes a reply that has started, and reads to the end; never rejects. */
  async follow(turn: Turn, observer: ReplyObserver): Promise<Ending> {
    const reading = (this.#reading = new AbortController());
    for (let failures = 0; ; failures++) {
      const before = turn.nextEvent;
      try {
        const ending = await this.#read(turn, reading.signal, observer);
        if (ending) return ending;
        throw new Problem("cut");
      } catch (error) {
        if (reading.signal.aborted) return this.#stopping === turn ? "stopped" : "detached";
        const problem = toProblem(error);
        if (turn.nextEvent > before) failures = 0;
        if (problem.code === "reply_unknown" && turn.replacedReplyId && !turn.replyId) {
          turn.replacedReplyId = ""; // the server has forgotten the reply to replace
          continue;
        }
        if (!shouldRetry(problem, turn, failures)) return problem.kind === "missing" && turn.text ? new Problem("cut", "", 0, problem.code) : problem;
        observer.reconnecting(true);
        await waitToRetry(RETRY_DELAYS_MS[failures] ?? 0, reading.signal);
        observer.reconnecting(false);
      }
    }
  }

  /** Asks the server to stop the reply; stops reading anyway if the server does not end it soon. */
  stop(turn: Turn): void {
    const reading = this.#reading;
    this.#stopping = turn;
    if (turn.replyId) this.#sendStop(turn);
    setTimeout(() => this.#stopping === turn && reading?.abort(), STOP_TIMEOUT_MS);
  }

  /** Stops reading while the server goes on. */
  detach(): void {
    this.#reading?.abort();
  }

  /** Deletes the conversation, in the browser first and then on the server. */
  async reset(): Promise<void> {
    this.client.store.write({ resume: "" });
    if (this.client.resumable) await this.client.post("reset", null);
    this.client.dropSession();
  }

  async #read(turn: Turn, signal: AbortSignal, observer: ReplyObserver): Promise<Ending | null> {
    const { replyId, nextEvent, messageId, replacedReplyId } = turn;
    const fields = { text: turn.question, message: messageId, context: replyId ? undefined : await this.#acceptedContext(), replace: replacedReplyId || undefined };
    const events = replyId
      ? this.client.events(`replies/${encodeURIComponent(replyId)}?from=${nextEvent}`, null, signal)
      : this.client.events("messages", fields, signal);
    for await (const event of events) {
      const ending = this.#apply(turn, event);
      if (ending) return ending;
      observer.updated();
    }
    return null;
  }

  /** Returns the context, or undefined with a warning if it is too long: a question must not fail for it. */
  async #acceptedContext(): Promise<string | undefined> {
    const { contextLimit } = await this.client.session();
    if (new TextEncoder().encode(this.context).length <= contextLimit) return this.context;
    console.warn(`setContext > ${contextLimit}`);
    return undefined;
  }

  /** Applies one event to the turn; ignores events that a resumed stream repeats. */
  #apply(turn: Turn, event: ServerEvent): Ending | null {
    const id = Number(event.id);
    if (id < turn.nextEvent) return null;
    turn.nextEvent = id + 1;
    const body = parseJson(event.data);
    if (event.name === "start") {
      turn.replyId = asString(property(body, "reply"));
      void this.client.saveConversation(); // the session may have been renewed since the question
      if (this.#stopping === turn) this.#sendStop(turn);
    } else if (event.name === "text") turn.text += asString(property(body, "text"));
    else if (event.name === "citations") turn.citations = parseCitations(body);
    else if (event.name === "end") return endingFor((turn.finishReason = asString(property(body, "finish"))));
    else if (event.name === "error") {
      const seconds = asNumber(property(body, "retry_after"));
      return new Problem(seconds ? "busy" : "failed", "", seconds);
    }
    return null;
  }

  #sendStop(turn: Turn): void {
    const reading = this.#reading; // a later turn may replace it before the request fails
    void this.client.post(`replies/${encodeURIComponent(turn.replyId)}/stop`, null).catch(() => reading?.abort());
  }
}

/** Allows every retry once the reply has started; before that one at most, and none while offline. */
function shouldRetry(problem: Problem, turn: Turn, failures: number): boolean {
  if (problem.kind === "offline") return turn.replyId !== "" && failures < RETRY_DELAYS_MS.length;
  return (problem.kind === "cut" || problem.kind === "unreachable") && failures < (turn.replyId ? RETRY_DELAYS_MS.length : 1);
}

/** Resolves after the delay, or earlier when the browser comes online or `signal` aborts. */
function waitToRetry(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}
