/**
 * What has been asked and answered, kept in memory until the page goes; the server keeps no history yet.
 * When it does (a later issue moves the history there), only the new question will be sent.
 */
import type { Client, Message } from "./client.ts";
import { Problem } from "./problem.ts";

/** How an answer ended: whole, at its length limit, by the visitor, or by a problem. */
export type Ending = "whole" | "full" | "stopped" | Problem;

interface Turn {
  question: string;
  answer: string;
}

/** Small models have small contexts, so only the latest turns are sent again. */
const TURNS_SENT = 4;

export class Conversation {
  #turns: Turn[] = [];

  constructor(readonly client: Client) {}

  /** Ask, and pass on the whole answer so far each time that it grows; never throws. */
  async ask(question: string, signal: AbortSignal, grow: (answer: string) => void): Promise<Ending> {
    const turn = { question, answer: "" };
    const messages = this.#messages(question);
    this.#turns.push(turn);
    try {
      let full = false;
      for await (const piece of this.client.answer(messages, signal)) {
        full ||= piece.full;
        turn.answer += piece.text;
        grow(turn.answer);
      }
      return full ? "full" : "whole";
    } catch (error) {
      if (signal.aborted) return "stopped";
      return error instanceof Problem ? error : new Problem("failed", String(error));
    }
  }

  /** Drop the latest turn, to ask it again. */
  forget(): void {
    this.#turns.pop();
  }

  /** The server wants the roles in turn, so a question without an answer is left out. */
  #messages(question: string): Message[] {
    const answered = this.#turns.filter((turn) => turn.answer.trim()).slice(-TURNS_SENT);
    const earlier = answered.flatMap((turn): Message[] => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.answer },
    ]);
    return [...earlier, { role: "user", content: question }];
  }
}
