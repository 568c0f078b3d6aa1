/** Defines every text the widget shows; a language that lacks a key does not compile. */
import { counted } from "../counted.ts";
import type { ProblemKind } from "../../transport/problem.ts";

const english = {
  code: "en",
  rightToLeft: false,
  title: "Chat",
  assistant: "AI assistant",
  caution: "Answers come from an AI and can be wrong.",
  conversation: "Conversation",
  message: "Your message",
  placeholder: "Ask a question",
  starters: "Suggested questions",
  send: "Send",
  stop: "Stop",
  retry: "Try again",
  close: "Close chat",
  fresh: "New chat",
  begun: "A new chat has begun.",
  latest: "Jump to the latest message",
  you: "You said",
  answer: "AI assistant said",
  writing: "The assistant is writing.",
  complete: "Answer complete.",
  stopped: "Stopped.",
  full: "The answer reached its length limit.",
  budget: "This assistant has used up its budget for now.",
  late: "The answer took too long and was stopped.",
  broken: "The connection was lost. Reconnecting…",
  incomplete: "The connection was lost. This answer is incomplete.",
  offline: "You are offline.",
  ready: "You can try again now.",
  wait: counted("en", { other: "The assistant is busy. You can try again in #\u00a0s." }),
  copy: "Copy",
  copyCode: "Copy code",
  copied: "Copied",
  uncopied: "Could not copy",
  good: "Good answer",
  bad: "Bad answer",
  again: "Answer again",
  comment: "What should we know? (optional)",
  sendComment: "Send feedback",
  thanks: "Thank you for your feedback.",
  unstored: "Your feedback could not be stored.",
  sources: "Sources",
  passage: "Passage",
  table: "Table",
  codeBlock: "Code",
  long: "The answer is long: read on in the conversation.",
  whyBad: "What was wrong?",
  editing: "Edit your question, then send it again.",
  edit: "Edit question",
  tooLong: "The question is too long for this assistant. Please shorten it.",
  undo: "Undo",
  left: counted("en", { one: "# character left", other: "# characters left" }),
  over: counted("en", { one: "# character too many", other: "# characters too many" }),
  download: "Download this chat",
  person: "Talk to a person",
  transcript: "What is sent",
  note: "What is it about? (optional)",
  contact: "How can we reach you?",
  isSent: "This is sent, and nothing else:",
  sendPerson: "Send to a person",
  handedOver: "Sent. A person will read it.",
  notHandedOver: "It could not be sent. Please try again.",
  sendMail: "Open in your mail program",
  openPage: "Open the page",
  cancel: "Cancel",
  reasons: {
    wrong: "Not correct",
    incomplete: "Incomplete",
    unclear: "Hard to understand",
    other: "Something else",
  },
  problems: {
    offline: "You are offline. Check your connection and try again.",
    unreachable: "The assistant cannot be reached right now.",
    denied: "This page is not allowed to use this assistant.",
    missing: "This assistant does not exist any more.",
    busy: "The assistant is busy.",
    refused: "The assistant could not take this message.",
    failed: "Something went wrong on our side.",
    cut: "The connection was lost before an answer came.",
  } satisfies Record<ProblemKind, string>,
};

export { override } from "../counted.ts";

export default english;
export type Texts = typeof english;

/** The file of one language. */
export interface Language {
  default: Texts;
  override(texts: Texts, json: string): Texts;
}
