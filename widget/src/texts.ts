/** Everything the widget says by itself, one table a language; a key that one lacks does not compile. */
import type { Kind } from "./problem.ts";

const english = {
  title: "Chat",
  assistant: "AI assistant",
  caution: "Answers come from an AI and can be wrong.",
  conversation: "Conversation",
  message: "Your message",
  placeholder: "Ask a question",
  send: "Send",
  stop: "Stop",
  retry: "Try again",
  close: "Close chat",
  you: "You said",
  answer: "AI assistant said",
  writing: "The assistant is writing.",
  complete: "Answer complete.",
  stopped: "Stopped.",
  full: "The answer reached its length limit.",
  ready: "You can try again now.",
  wait: (seconds: number): string => `The assistant is busy. You can try again in ${seconds}\u00a0s.`,
  incomplete: "The connection was lost. This answer is incomplete.",
  problems: {
    offline: "You are offline. Check your connection and try again.",
    unreachable: "The assistant cannot be reached right now.",
    denied: "This page is not allowed to use this assistant.",
    missing: "This assistant does not exist any more.",
    busy: "The assistant is busy.",
    refused: "The assistant could not take this message.",
    failed: "Something went wrong on our side.",
    cut: "The connection was lost before an answer came.",
  } satisfies Record<Kind, string>,
};

export type Texts = typeof english;

const languages = new Map<string, Texts>([["en", english]]);

/** The texts for a language tag such as `de-AT`; English where there are none. */
export function textsFor(language: string): Texts {
  const tag = language.toLowerCase();
  return languages.get(tag) ?? languages.get(tag.split("-")[0] ?? "") ?? english;
}
