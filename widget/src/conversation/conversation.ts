/**
 * What has been asked and answered. The server keeps it; this follows one answer at a time, through breaks of the connection,
 * until the server says that it is over.
 */
import { allowed } from "../dom/address.ts";
import type { Client } from "../transport/client.ts";
import { list, member, number, read, text } from "../transport/json.ts";
import { asProblem, Problem } from "../transport/problem.ts";
import type { ServerEvent } from "../transport/sse.ts";

export interface Citation {
  title: string;
  address: string;
}

export type Rating = "up" | "down" | null;

export interface Turn {
  question: string;
  /** The widget's own id of the question, so that it can be sent twice and is asked once. */
  message: string;
  /** The server's id of the answer whose place this one is to take. */
  replace: string;
  /** The server's id of the answer, empty until it has begun. */
  reply: string;
  text: string;
  finish: string | null;
  /** The first event that has not been read. */
  next: number;
  citations: Citation[];
  rating: Rating;
}

/** How an answer ended: whole, cut short by the server or the visitor, or by a problem. */
export type Ending = "whole" | "full" | "budget" | "late" | "stopped" | "left" | Problem;

export interface Watch {
  /** The turn has more text. */
  grew(): void;
  /** The connection broke, or is back. */
  broken(now: boolean): void;
}

const PAUSES_MS = [300, 1000, 2000, 4000, 8000, 8000];
const STOP_MS = 5000;
const ENDINGS = new Map<string, Ending>([
  ["stop", "whole"],
  ["budget", "budget"],
  ["timeout", "late"],
  ["stopped", "stopped"],
]);

export function turnOf(question: string, replace = ""): Turn {
  return { question, message: identity(), replace, reply: "", text: "", finish: null, next: 0, citations: [], rating: null };
}

export class Conversation {
  /** What the page says of itself. */
  context: string | undefined;
  #following: AbortController | undefined;
  #stopping: Turn | undefined;

  constructor(readonly client: Client) {}

  /** The turns of an earlier page, the last of which may still be growing. */
  async restore(): Promise<Turn[]> {
    const body = await this.client.json("conversation");
    return list(member(body, "turns")).map(restored);
  }

  /** Ask, or go on with an answer that has begun, until it ends; never throws. */
  async run(turn: Turn, watch: Watch): Promise<Ending> {
    const following = (this.#following = new AbortController());
    for (let failures = 0; ; failures++) {
      const before = turn.next;
      try {
        const ending = await this.#read(turn, following.signal, watch);
        if (ending) return ending;
        throw new Problem("cut");
      } catch (error) {
        if (following.signal.aborted) return this.#stopping === turn ? "stopped" : "left";
        const problem = asProblem(error);
        if (turn.next > before) failures = 0;
        if (problem.code === "reply_unknown" && turn.replace && !turn.reply) {
          turn.replace = ""; // forgotten meanwhile: there is nothing to take the place of
          continue;
        }
        if (!again(problem, turn, failures)) return problem.kind === "missing" && turn.text ? new Problem("cut", "", 0, problem.code) : problem;
        watch.broken(true);
        await pause(PAUSES_MS[failures] ?? 0, following.signal);
        watch.broken(false);
      }
    }
  }

  /** The visitor wants no more; if the server does not say so soon, it is so all the same. */
  stop(turn: Turn): void {
    const following = this.#following;
    this.#stopping = turn;
    if (turn.reply) this.#tellStop(turn);
    setTimeout(() => this.#stopping === turn && following?.abort(), STOP_MS);
  }

  /** Read no more; the server goes on. */
  leave(): void {
    this.#following?.abort();
  }

  async rate(turn: Turn, comment?: string): Promise<void> {
    await this.client.post("feedback", { reply: turn.reply, rating: turn.rating, comment }, undefined, true);
  }

  /** Forget everything: here in any case, and on the server. */
  async reset(): Promise<void> {
    this.client.store.clear();
    if (this.client.returning) await this.client.post("reset", null);
    this.client.forget();
  }

  async #read(turn: Turn, signal: AbortSignal, watch: Watch): Promise<Ending | null> {
    const { reply, next, message, replace } = turn;
    const fields = { text: turn.question, message, context: reply ? undefined : await this.#told(), replace: replace || undefined };
    const events = reply
      ? this.client.events(`replies/${encodeURIComponent(reply)}?from=${next}`, null, signal)
      : this.client.events("messages", fields, signal);
    for await (const event of events) {
      const ending = this.#take(turn, event);
      if (ending) return ending;
      watch.grew();
    }
    return null;
  }

  /** What the page says of itself, if the server takes that much: no question is to fail by it. */
  async #told(): Promise<string | undefined> {
    const { most } = await this.client.session();
    if (new TextEncoder().encode(this.context).length <= most) return this.context;
    console.warn(`Secateur: setContext: more than ${most} bytes are left out`);
    return undefined;
  }

  /** One event of the answer; those that a repeated stream gives again are passed over. */
  #take(turn: Turn, event: ServerEvent): Ending | null {
    const id = Number(event.id);
    if (id < turn.next) return null;
    turn.next = id + 1;
    const body = read(event.data);
    if (event.name === "start") {
      turn.reply = text(member(body, "reply"));
      void this.client.keep(); // the session may be another than when the question was asked
      if (this.#stopping === turn) this.#tellStop(turn);
    } else if (event.name === "text") turn.text += text(member(body, "text"));
    else if (event.name === "citations") turn.citations = citationsOf(body);
    else if (event.name === "end") return endingOf((turn.finish = text(member(body, "finish"))));
    else if (event.name === "error") {
      const seconds = number(member(body, "retry_after"));
      return new Problem(seconds ? "busy" : "failed", "", seconds);
    }
    return null;
  }

  #tellStop(turn: Turn): void {
    const following = this.#following; // by then, it may be another's
    void this.client.post(`replies/${encodeURIComponent(turn.reply)}/stop`, null).catch(() => following?.abort());
  }
}

/** How an answer that ended so is to be shown. */
export function endingOf(finish: string): Ending {
  if (finish === "error") return new Problem("failed");
  return finish === "server_shutdown" ? new Problem("cut") : (ENDINGS.get(finish) ?? "full");
}

/** Whether another attempt is worth it: at once where the answer had begun, hardly where it had not. */
function again(problem: Problem, turn: Turn, failures: number): boolean {
  if (problem.kind === "offline") return turn.reply !== "" && failures < PAUSES_MS.length;
  return (problem.kind === "cut" || problem.kind === "unreachable") && failures < (turn.reply ? PAUSES_MS.length : 1);
}

/** Wait, but not longer than until the browser is online again. */
function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
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

function restored(value: unknown): Turn {
  const reply = member(value, "reply");
  const rating = member(reply, "rating");
  const finish = member(reply, "finish");
  return {
    question: text(member(value, "question")),
    message: "",
    replace: "",
    reply: text(member(reply, "id")),
    text: text(member(reply, "text")),
    finish: typeof finish === "string" ? finish : null,
    next: number(member(reply, "next")),
    citations: citationsOf(reply),
    rating: rating === "up" || rating === "down" ? rating : null,
  };
}

function citationsOf(value: unknown): Citation[] {
  const found = list(member(value, "citations")).map((citation) => {
    const address = allowed(text(member(citation, "url")));
    return { title: text(member(citation, "title")) || address, address };
  });
  return found.filter(({ address }) => address.startsWith("http"));
}

/** Not by Math.random, which pages replace by a constant to be photographed. */
function identity(): string {
  return crypto.getRandomValues(new Uint32Array(2)).join("-");
}
