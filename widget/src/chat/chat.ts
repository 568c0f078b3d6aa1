/** Controls the chat: joins panel and conversation, runs the page's calls, and dispatches its events. */
import { loadExtra } from "../chunks/load.ts";
import { Conversation } from "../conversation/conversation.ts";
import { endingFor, type Ending } from "../conversation/ending.ts";
import { newTurn, type Turn } from "../conversation/turn.ts";
import { withoutPrototype } from "../dom/document.ts";
import { detach } from "../dom/elements.ts";
import type { Answer } from "../panel/answer.ts";
import { Panel } from "../panel/panel.ts";
import type { Texts } from "../texts/languages/en.ts";
import type { Client } from "../transport/client.ts";
import { Problem, toProblem } from "../transport/problem.ts";
import { dispatch } from "./events.ts";
import { callMethod } from "./page-methods.ts";
import { problemMessage } from "./problem-message.ts";
import { Visibility } from "./visibility.ts";

export class Chat {
  #panel: Panel;
  #conversation: Conversation;
  /** The latest turn; `replaced` is the old answer shown until the new one starts. */
  #latest: { turn: Turn; question: HTMLElement; answer: Answer; replaced: HTMLElement | undefined } | undefined;
  /** Whether the conversation is shown; undefined before the first use or after a failure. */
  #started: Promise<boolean> | undefined;
  readonly visibility: Visibility;
  #cancelCountdown = (): void => {};
  #readySent = false;
  /** The visitor asked for a new chat, and the server has not confirmed it. */
  #resetPending = false;
  #introduced = false;
  #introducePanel = (): void => {};
  #followUps: string[] = [];
  /** The turn whose question the visitor edits. */
  #edited: Turn | undefined;
  /** Resolves once "New chat" has cleared the log. */
  #clearing: Promise<void> | undefined;
  /** Deletes the conversation that the visitor left by "New chat", unless that was undone. */
  #commitReset: (() => void) | undefined;

  constructor(
    readonly root: ShadowRoot,
    readonly launcher: HTMLButtonElement,
    readonly client: Client,
    readonly texts: Texts,
  ) {
    this.#conversation = new Conversation(client);
    this.#panel = new Panel(texts, client.settings, {
      send: (question) => this.send(question),
      stop: () => this.#latest && this.#conversation.stop(this.#latest.turn),
      close: () => this.close(),
      startNewChat: () => (this.#clearing = this.#startNewChat()),
      client,
      again: (turn) => {
        this.#panel.focus(); // the clicked button disappears
        void this.#askAgain(turn);
      },
      edit: (turn) => {
        this.#edited = turn;
        this.#panel.composer.setText(turn.question);
        this.#panel.announce(this.texts.editing);
        this.#panel.focus();
      },
    });
    this.#panel.node.hidden = true;
    this.visibility = new Visibility(root, launcher, this.#panel, client);
    root.append(this.#panel.node);
    this.#panel.keepDraft(client.store);
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
    if (!this.visibility.isOpen) {
      this.visibility.open();
      this.#emit("open");
    }
    if (focus) this.#panel.focus();
    void this.#start();
  }

  close(): void {
    if (!this.visibility.isOpen) return;
    this.#commitReset?.();
    const leave = this.visibility.close();
    this.#emit("close");
    leave();
  }

  async send(question: string): Promise<void> {
    question = question.trim();
    if (!question) return;
    if (this.#clearing) await this.#clearing; // a question asked while its chunk loads belongs to the new chat
    const { composer } = this.#panel;
    const edited = composer.busy ? undefined : this.#edited;
    this.#commitReset?.();
    const early = this.#introduced || composer.busy ? [] : [this.#panel.addQuestion(question), this.#panel.addAnswer().node];
    const started = await this.#start();
    early.forEach(detach);
    if (started && this.root.host.isConnected && !composer.busy) await this.#ask(question, edited);
    else composer.appendText(question);
  }

  /** Asks a question, which replaces the `edited` one if nothing was asked after it. */
  async #ask(text: string, edited?: Turn): Promise<void> {
    this.#edited = undefined;
    this.#latest?.answer.settle();
    const replaced = edited && this.#latest?.turn === edited && edited.replyId;
    if (replaced) [this.#latest!.question, this.#latest!.answer.node].forEach(detach);
    const turn = newTurn(text, replaced || "");
    const node = this.#panel.addQuestion(text);
    this.#emit("message", withoutPrototype({ text }));
    await this.#follow(turn, node);
  }

  /** Clears the log and offers to undo that; deletes the conversation once the visitor goes on or leaves. */
  async #startNewChat(): Promise<void> {
    const extra = await loadExtra("undo", this.#panel.node).catch(() => {});
    if (!extra || this.#panel.composer.busy || this.#commitReset) return this.reset();
    this.#commitReset = extra.clearLog(this.#panel, this.#introducePanel, (undone) => {
      this.#commitReset = undefined;
      if (!undone) return void this.reset();
      void this.client.saveConversation();
      this.#panel.focus();
    });
    this.client.store.write({ resume: "" });
    this.#panel.focus();
  }

  /** Starts a new conversation once the old one is deleted; questions sent meanwhile wait. */
  async reset(): Promise<void> {
    this.#introduced = false;
    this.#resetPending = true;
    this.#started = Promise.resolve(this.#started).then(() => this.#introduce());
    if (await this.#start()) this.#panel.announce(this.texts.begun);
    if (this.visibility.isOpen) this.#panel.focus();
  }

  setContext(context: unknown): void {
    this.#conversation.context = context == null ? undefined : String(context);
  }

  /** Releases listeners, timers and requests when the element leaves the page; opening it again resumes. */
  pause(): void {
    this.#conversation.detach();
    this.#cancelCountdown();
    this.#started = undefined;
    this.#introduced = false;
    this.client.dropSession(); // the next session says whether the conversation still exists
    this.visibility.hide();
  }

  /** Shows the introduction unless it is already shown; resolves to whether it succeeded. */
  #start(): Promise<boolean> {
    const started = (this.#started ??= this.#introduce());
    void started.then((shown) => shown || this.#started !== started || (this.#started = undefined));
    return started;
  }

  /** Completes a pending reset, then shows the greeting and the turns of an earlier page. */
  async #introduce(): Promise<boolean> {
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
      const { title, greeting, starters, followUps } = this.client.settings;
      this.#introducePanel = () =>
        this.#panel.showIntroduction(title || session.title, greeting || session.greeting, starters.length ? starters : session.starters);
      this.#introducePanel();
      this.#panel.composer.limit = session.textLimit;
      this.#followUps = followUps.length ? followUps : session.followUps;
      this.#introduced = true;
      for (const turn of turns) this.#restore(turn);
      return true;
    } catch (error) {
      this.#panel.showIntroduction(this.client.settings.title, this.client.settings.greeting, []);
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
    turn.replyId ? answer!.node.after(this.#panel.beginning()) : question!.before(this.#panel.beginning());
  }

  /** Shows an earlier turn and follows its reply if it still streams. */
  #restore(turn: Turn): void {
    this.#latest?.answer.settle();
    const question = this.#panel.addQuestion(turn.question);
    if (turn.finishReason === null) return void this.#follow(turn, question);
    const answer = this.#panel.addAnswer();
    this.#latest = { turn, question, answer, replaced: undefined };
    answer.finish(turn.text);
    void this.#showEnding(endingFor(turn.finishReason), false);
  }

  /** Follows a reply to its end; `replaced` is an old answer that disappears once the new one starts. */
  async #follow(turn: Turn, question: HTMLElement, replaced?: HTMLElement, resumed = false): Promise<void> {
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
    if (resumed && ending instanceof Problem && ending.code === "reply_unknown") {
      detach(answer.node); // the server was restarted: one click of "Try again" is enough
      return this.#follow(newTurn(turn.question), question);
    }
    answer.finish(turn.text);
    this.#panel.setStreaming(false);
    if (ending !== "detached") await this.#showEnding(ending, true);
  }

  /** Shows how the latest reply ended, and announces it if it was live. */
  async #showEnding(ending: Ending, live: boolean): Promise<void> {
    const { turn, answer } = this.#latest!;
    if (live && !this.visibility.isOpen) this.launcher.setAttribute("aria-description", this.texts.complete);
    if (ending instanceof Problem) return this.#showProblem(answer, ending, () => void this.#askAgain(turn, ending), turn.text);
    const hint = ending === "whole" || ending === "detached" ? "" : this.texts[ending];
    answer.showHint(hint);
    const actions = answer.showActions(turn);
    if (ending === "whole") this.#panel.suggest(this.#followUps);
    if (!live) return;
    this.#emit("response.end", withoutPrototype({ finish: turn.finishReason, text: turn.text }));
    const spoken = ending === "stopped" ? [] : [this.texts.complete, await (await actions)()];
    if (this.#latest?.answer === answer) this.#panel.announce([...spoken, hint].filter(Boolean).join(" "));
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
    if (problem?.kind !== "refused") return this.#follow(turn, question, replaced, turn.replyId !== "");
    // The server would refuse the question again, so the visitor edits it; one with an older answer stays.
    if (!replaced) detach(question);
    this.#latest = undefined;
    this.#panel.composer.appendText(turn.question);
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
    this.#panel.announce(message);
    const none = (this.#cancelCountdown = () => {});
    if (problem.retryAfter) void loadExtra("busy", line).then((extra) => this.#cancelCountdown === none && (this.#cancelCountdown = extra.countDown(this.#panel, line, button, Date.now() + problem.retryAfter * 1000)), () => {});
    this.#emit("error", withoutPrototype({ kind: problem.kind, code: problem.code }));
  }

  #emit(name: string, fields?: Record<string, unknown>): void {
    dispatch(this.root.host, this.client.settings, name, this.#latest?.turn.replyId, fields);
  }
}
