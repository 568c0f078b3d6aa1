/** Controls the chat: joins panel and conversation, runs the page's calls, and dispatches its events. */
import { Conversation } from "../conversation/conversation.ts";
import { endingFor, type Ending } from "../conversation/ending.ts";
import { newTurn, type Turn } from "../conversation/turn.ts";
import { documentMember, withoutPrototype } from "../dom/document.ts";
import { detach, element } from "../dom/elements.ts";
import type { Answer } from "../panel/answer.ts";
import { Panel } from "../panel/panel.ts";
import type { Texts } from "../texts/en.ts";
import type { Client } from "../transport/client.ts";
import { Problem, toProblem } from "../transport/problem.ts";
import { startCountdown } from "./countdown.ts";
import { callMethod } from "./page-methods.ts";
import { problemMessage } from "./problem-message.ts";

/** Logged for the developer; browsers do not reveal which of the two it is. */
const UNREACHABLE = "Secateur: the server is down, or the skill does not name this origin";

export class Chat {
  #panel: Panel;
  #conversation: Conversation;
  /** The latest turn; `replaced` is the old answer shown until the new one starts. */
  #latest: { turn: Turn; question: HTMLElement; answer: Answer; replaced: HTMLElement | undefined } | undefined;
  /** Resolves to whether the conversation is shown; undefined before the first use or after a failure. */
  #started: Promise<boolean> | undefined;
  /** Aborted when the panel closes; undefined while it is closed. */
  #open: AbortController | undefined;
  #focusedBefore: HTMLElement | null = null;
  #cancelCountdown = (): void => {};
  #readySent = false;
  /** The visitor asked for a new chat, and the server has not confirmed it. */
  #resetPending = false;

  constructor(
    readonly root: ShadowRoot,
    readonly launcher: HTMLButtonElement,
    readonly client: Client,
    readonly texts: Texts,
  ) {
    this.#conversation = new Conversation(client);
    this.#panel = new Panel(texts, client.settings, {
      send: (question) => void this.send(question),
      stop: () => this.#latest && this.#conversation.stop(this.#latest.turn),
      close: () => this.close(),
      startNewChat: () => void this.reset(),
      rate: (turn, comment) => this.#rate(turn, comment),
      again: (turn) => {
        this.#panel.focus(); // the clicked button disappears
        void this.#askAgain(turn);
      },
    });
    this.#panel.node.hidden = true;
    root.append(this.#panel.node);
    client.onConversationLost = () => this.#showConversationLost();
  }

  /** Runs a method of the page's API; ignores unknown names. */
  call(method: string, values: unknown[]): unknown {
    if (!this.#readySent && method !== "on") {
      this.#readySent = true; // after queued `on` calls, whose listeners hear it too
      this.#emit("ready");
    }
    return callMethod(this, method, values);
  }

  /** Shows the panel instead of the launcher. */
  open(focus = true): void {
    if (!this.root.host.isConnected) return;
    if (!this.#open) {
      const active = documentMember("activeElement");
      this.#focusedBefore = active instanceof HTMLElement && active !== this.root.host ? active : null;
      this.#open = new AbortController();
      this.#setVisible(true);
      this.#panel.activate(this.#open.signal);
      this.#emit("open");
    }
    if (focus) this.#panel.focus();
    void this.#start();
  }

  close(): void {
    if (!this.#open) return;
    this.#open.abort();
    this.#open = undefined;
    const hadFocus = this.root.activeElement;
    this.#setVisible(false);
    this.#emit("close");
    if (!hadFocus) return; // closed by a script while the visitor is elsewhere
    const target = this.#focusedBefore?.isConnected && this.#focusedBefore !== documentMember("body") ? this.#focusedBefore : this.launcher;
    target.focus({ preventScroll: true });
  }

  toggle(): void {
    if (this.#open) this.close();
    else this.open();
  }

  async send(question: string): Promise<void> {
    const text = question.trim();
    const started = await this.#start();
    if (!text || !this.root.host.isConnected) return;
    const { composer } = this.#panel;
    if (started && !composer.busy) await this.#ask(text);
    else composer.appendText(text);
  }

  async #ask(text: string): Promise<void> {
    this.#latest?.answer.settle();
    const node = this.#panel.addQuestion(text);
    this.#emit("message", withoutPrototype({ text }));
    await this.#follow(newTurn(text), node);
  }

  /** Starts a new conversation once the old one is deleted; questions sent meanwhile wait. */
  async reset(): Promise<void> {
    const before = this.#started;
    this.#resetPending = true;
    this.#started = Promise.resolve(before).then(() => this.#introduce());
    if (await this.#start()) this.#panel.announce(this.texts.begun);
    if (this.#open) this.#panel.focus();
  }

  identify(identity: unknown): void {
    this.client.identity = identity;
    this.client.dropSession();
  }

  setContext(context: unknown): void {
    this.#conversation.context = context == null ? undefined : String(context);
  }

  /** Releases listeners, timers and requests when the element leaves the page; opening it again resumes. */
  pause(): void {
    this.#conversation.detach();
    this.#cancelCountdown();
    this.#open?.abort();
    this.#open = undefined;
    this.#started = undefined;
    this.client.dropSession(); // the next session says whether the conversation still exists
    this.#setVisible(false);
  }

  #setVisible(visible: boolean): void {
    this.#panel.node.hidden = !visible;
    this.launcher.hidden = visible;
    if (visible) this.launcher.removeAttribute("aria-description");
    this.launcher.setAttribute("aria-expanded", String(visible));
  }

  /** Shows the introduction unless it is already shown; resolves to whether it succeeded. */
  #start(): Promise<boolean> {
    const started = (this.#started ??= this.#introduce());
    void started.then((succeeded) => succeeded || this.#started !== started || (this.#started = undefined));
    return started;
  }

  /** Completes a pending reset, then shows the greeting and the turns of an earlier page. */
  async #introduce(): Promise<boolean> {
    const { title, greeting, starters } = this.client.settings;
    this.#cancelCountdown(); // its line is about to be replaced
    try {
      if (this.#resetPending) {
        this.#conversation.detach();
        this.#latest = undefined;
        this.#panel.setStreaming(false);
        await this.#conversation.reset();
        this.#resetPending = false;
        this.#emit("reset");
      }
      const session = await this.client.session();
      const turns = session.resumed ? await this.#conversation.restore() : [];
      this.#panel.environment.imageOrigins.push(...session.imageOrigins);
      this.#panel.showIntroduction(title || session.title, greeting || session.greeting, starters.length ? starters : session.starters);
      for (const turn of turns) this.#restore(turn);
      return true;
    } catch (error) {
      this.#panel.showIntroduction(title, greeting, []);
      const answer = this.#panel.addAnswer();
      this.#showProblem(answer, toProblem(error), () => {
        detach(answer.node);
        void this.#start();
      });
      return false;
    }
  }

  /** Marks where the server lost the conversation, unless the current question is its first. */
  #showConversationLost(): void {
    const { turn, question, answer } = this.#latest ?? {};
    if (!turn || (!turn.replyId && this.root.querySelector(".question") === question)) return;
    const line = element("p", { class: "hint" }, this.texts.begun);
    if (turn.replyId) answer!.node.after(line);
    else question!.before(line);
    this.#panel.announce(this.texts.begun);
  }

  /** Shows an earlier turn and follows its reply if it still streams. */
  #restore(turn: Turn): void {
    this.#latest?.answer.settle();
    const question = this.#panel.addQuestion(turn.question);
    if (turn.finishReason === null) return void this.#follow(turn, question);
    const answer = this.#panel.addAnswer();
    this.#latest = { turn, question, answer, replaced: undefined };
    answer.finish(turn.text);
    this.#showEnding(endingFor(turn.finishReason), "", false);
  }

  /** Follows a reply to its end; `replaced` is an old answer that disappears once the new one starts. */
  async #follow(turn: Turn, question: HTMLElement, replaced?: HTMLElement): Promise<void> {
    const answer = this.#panel.addAnswer();
    const latest = (this.#latest = { turn, question, answer, replaced });
    this.#panel.setStreaming(true);
    this.#panel.announce(this.texts.writing);
    this.#emit("response.start");
    if (turn.text) answer.update(turn.text);
    const observer = {
      updated: (): void => {
        detach(replaced);
        answer.update(turn.text);
      },
      reconnecting: (active: boolean): void => answer.showHint(active ? this.texts.broken : ""),
    };
    if (!turn.replyId) void this.client.saveConversation().catch(() => {});
    const ending = await this.#conversation.follow(turn, observer);
    if (this.#latest !== latest) return;
    const spoken = answer.finish(turn.text);
    this.#panel.setStreaming(false);
    if (ending !== "detached") this.#showEnding(ending, spoken, true);
  }

  /** Shows how the latest reply ended, and announces it if it was live. */
  #showEnding(ending: Ending, spoken: string, live: boolean): void {
    const { turn, answer } = this.#latest!;
    if (live && !this.#open) this.launcher.setAttribute("aria-description", this.texts.complete);
    if (ending instanceof Problem) return this.#showProblem(answer, ending, () => void this.#askAgain(turn, ending), turn.text);
    const hint = ending === "whole" || ending === "detached" ? "" : this.texts[ending];
    answer.showHint(hint);
    answer.showActions(turn);
    if (!live) return;
    this.#panel.announce(ending === "stopped" ? hint : [this.texts.complete, spoken, hint].filter(Boolean).join(" "));
    this.#emit("response.end", withoutPrototype({ finish: turn.finishReason, text: turn.text }));
  }

  /** Resumes a reply that broke off, or asks the question again for another one. */
  async #askAgain(turn: Turn, problem?: Problem): Promise<void> {
    const latest = this.#latest;
    if (!latest || this.#panel.composer.busy) return;
    const { question, answer, replaced } = latest;
    const resumable = problem && turn.finishReason === null && ["cut", "unreachable", "offline"].includes(problem.kind);
    if (turn.replyId && !(resumable && problem.code !== "reply_unknown")) {
      answer.settle();
      return this.#follow(newTurn(turn.question, turn.replyId), question, answer.node);
    }
    detach(answer.node);
    if (problem?.kind !== "refused") return this.#follow(turn, question, replaced);
    // The server would refuse the question again, so the visitor edits it; one with an older answer stays.
    if (!replaced) detach(question);
    this.#latest = undefined;
    this.#panel.composer.appendText(turn.question);
  }

  async #rate(turn: Turn, comment?: string): Promise<boolean> {
    const rated = this.#conversation.rate(turn, comment);
    this.#emit("feedback", withoutPrototype({ rating: turn.rating, text: comment ?? "" }));
    return rated.then(() => true, () => false);
  }

  /** Shows a problem with a retry button, below what was received of the reply. */
  #showProblem(answer: Answer, problem: Problem, retry: () => void, received = ""): void {
    this.#cancelCountdown();
    const message = problemMessage(problem, this.texts, received);
    const { line, button } = answer.showProblem(message, () => {
      this.#cancelCountdown();
      this.#panel.focus();
      retry();
    });
    if (problem.retryAfter) this.#cancelCountdown = startCountdown(this.#panel, line, button, problem.retryAfter);
    else this.#panel.announce(message);
    if (problem.kind === "unreachable") console.warn(UNREACHABLE);
    this.#emit("error", withoutPrototype({ kind: problem.kind, code: problem.code }));
  }

  /** Dispatches an event to the page, without what was written unless the developer asked for it. */
  #emit(name: string, fields: Record<string, unknown> = withoutPrototype({})): void {
    const { skill, eventText } = this.client.settings;
    if (!eventText) delete fields.text;
    const detail = withoutPrototype({ ...fields, skill, reply: this.#latest?.turn.replyId || undefined });
    this.root.host.dispatchEvent(new CustomEvent(`skillchat:${name}`, withoutPrototype({ bubbles: true, composed: true, detail })));
  }
}
