/** Joins the panel to the conversation, and both to the page: what the page may call, and what it is told. */
import type { Answer } from "../panel/answer.ts";
import type { Client } from "../transport/client.ts";
import { Conversation, endingOf, turnOf, type Ending, type Turn } from "../conversation/conversation.ts";
import { bare, drop, element, page } from "../dom/elements.ts";
import { Panel } from "../panel/panel.ts";
import { asProblem, Problem, wordsOf } from "../transport/problem.ts";
import type { Texts } from "../texts/select.ts";
import { waitFor } from "./countdown.ts";

/** For the page's developer: the browser does not tell the widget which of the two it is. */
const UNREACHABLE = "Secateur: the server is down, or the skill does not name this origin";

export class Chat {
  #panel: Panel;
  #conversation: Conversation;
  #last: { turn: Turn; question: HTMLElement; answer: Answer; old: HTMLElement | undefined } | undefined;
  #begun: Promise<boolean> | undefined;
  #shown: AbortController | undefined;
  #before: HTMLElement | null = null;
  #stopWaiting = (): void => {};
  #told = false;
  /** The visitor has begun anew, and the server does not know it yet. */
  #forgetting = false;

  constructor(
    readonly root: ShadowRoot,
    readonly launcher: HTMLButtonElement,
    readonly client: Client,
    readonly texts: Texts,
  ) {
    this.#conversation = new Conversation(client);
    this.#panel = new Panel(texts, client.settings, {
      send: (question) => void this.send(question),
      stop: () => this.#last && this.#conversation.stop(this.#last.turn),
      close: () => this.close(),
      fresh: () => void this.reset(),
      rate: (turn, comment) => this.#rate(turn, comment),
      again: (turn) => {
        this.#panel.focus(); // the button goes
        void this.#again(turn);
      },
    });
    this.#panel.node.hidden = true;
    root.append(this.#panel.node);
    client.lost = () => this.#tellLost();
  }

  /** What the page's developer may call, by name; anything else is passed over. */
  call(method: string, [first, second]: unknown[]): unknown {
    const { host } = this.root;
    if (!this.#told && method !== "on") {
      this.#told = true; // what the page asked to hear before there was a chat hears this too
      this.#emit("ready");
    }
    switch (method) {
      case "open":
        return this.open(first !== false);
      case "close":
        return this.close();
      case "toggle":
        return this.#shown ? this.close() : this.open();
      case "send":
        this.open(false);
        return this.send(String(first));
      case "reset":
        return this.reset();
      case "identify":
        return this.identify(first);
      case "setContext":
        return (this.#conversation.context = first == null ? undefined : String(first));
      case "setTheme":
        host.removeAttribute("theme");
        return host.setAttribute("data-theme", String(first));
      case "on":
        return host.addEventListener(`skillchat:${first}`, second as EventListener);
      case "off":
        return host.removeEventListener(`skillchat:${first}`, second as EventListener);
      case "pause":
      case "destroy":
        this.pause();
    }
    return undefined;
  }

  /** Show the panel in the launcher's place. */
  open(focus = true): void {
    if (!this.root.host.isConnected) return;
    if (!this.#shown) {
      const active = page("activeElement");
      this.#before = active instanceof HTMLElement && active !== this.root.host ? active : null;
      this.#shown = new AbortController();
      this.#show(true);
      this.#panel.attend(this.#shown.signal);
      this.#emit("open");
    }
    if (focus) this.#panel.focus();
    void this.#begin();
  }

  close(): void {
    if (!this.#shown) return;
    this.#shown.abort();
    this.#shown = undefined;
    const within = this.root.activeElement;
    this.#show(false);
    this.#emit("close");
    if (!within) return; // the visitor is elsewhere, and the page's script closed it
    const back = this.#before?.isConnected && this.#before !== page("body") ? this.#before : this.launcher;
    back.focus({ preventScroll: true });
  }

  async send(question: string): Promise<void> {
    const text = question.trim();
    const begun = await this.#begin();
    if (!text || !this.root.host.isConnected) return;
    const { composer } = this.#panel;
    if (begun && !composer.busy) await this.#ask(text);
    else composer.put(text);
  }

  async #ask(text: string): Promise<void> {
    this.#last?.answer.settle();
    const node = this.#panel.question(text);
    this.#emit("message", bare({ text }));
    await this.#run(turnOf(text), node);
  }

  /** Begin anew: the browser forgets the way to the conversation, then the server forgets it; what is sent meanwhile waits. */
  async reset(): Promise<void> {
    const before = this.#begun;
    this.#forgetting = true;
    this.#begun = Promise.resolve(before).then(() => this.#introduce());
    if (await this.#begin()) this.#panel.announce(this.texts.begun);
    if (this.#shown) this.#panel.focus();
  }

  identify(identity: unknown): void {
    this.client.identity = identity;
    this.client.forget();
  }

  /** The element is gone from the page: hold no listener, timer or request; opening it again goes on. */
  pause(): void {
    this.#conversation.leave();
    this.#stopWaiting();
    this.#shown?.abort();
    this.#shown = undefined;
    this.#begun = undefined;
    this.client.forget(); // the next session says whether there is something to go on with
    this.#show(false);
  }

  #show(open: boolean): void {
    this.#panel.node.hidden = !open;
    this.launcher.hidden = open;
    if (open) this.launcher.removeAttribute("aria-description");
    this.launcher.setAttribute("aria-expanded", String(open));
  }

  /** The first words, and what was said on an earlier page; once, unless it fails. Says whether all is there. */
  #begin(): Promise<boolean> {
    const begun = (this.#begun ??= this.#introduce());
    void begun.then((there) => there || this.#begun !== begun || (this.#begun = undefined));
    return begun;
  }

  async #introduce(): Promise<boolean> {
    const { title, greeting, starters } = this.client.settings;
    this.#stopWaiting(); // for what is no longer shown
    try {
      if (this.#forgetting) {
        this.#conversation.leave();
        this.#last = undefined;
        this.#panel.writing(false);
        await this.#conversation.reset();
        this.#forgetting = false;
        this.#emit("reset");
      }
      const session = await this.client.session();
      const turns = session.resumed ? await this.#conversation.restore() : [];
      this.#panel.around.images.push(...session.images);
      this.#panel.introduce(title || session.title, greeting || session.greeting, starters.length ? starters : session.starters);
      for (const turn of turns) this.#restore(turn);
      return true;
    } catch (error) {
      this.#panel.introduce(title, greeting, []);
      const answer = this.#panel.answer();
      this.#trouble(answer, asProblem(error), () => {
        drop(answer.node);
        void this.#begin();
      });
      return false;
    }
  }

  /** What stands above is forgotten: say so between it and what is asked now, if anything does. */
  #tellLost(): void {
    const { turn, question, answer } = this.#last ?? {};
    if (!turn || (!turn.reply && this.root.querySelector(".question") === question)) return;
    const line = element("p", { class: "hint" }, this.texts.begun);
    if (turn.reply) answer!.node.after(line);
    else question!.before(line);
    this.#panel.announce(this.texts.begun);
  }

  /** Show an earlier turn, and go on with it if it is not whole. */
  #restore(turn: Turn): void {
    this.#last?.answer.settle();
    const question = this.#panel.question(turn.question);
    if (turn.finish === null) return void this.#run(turn, question);
    const answer = this.#panel.answer();
    this.#last = { turn, question, answer, old: undefined };
    answer.finish(turn.text);
    this.#end(endingOf(turn.finish), "", false);
  }

  /** Follow an answer to its end; `old` is the one whose place it takes once it has begun. */
  async #run(turn: Turn, question: HTMLElement, old?: HTMLElement): Promise<void> {
    const answer = this.#panel.answer();
    const last = (this.#last = { turn, question, answer, old });
    this.#panel.writing(true);
    this.#panel.announce(this.texts.writing);
    this.#emit("response.start");
    if (turn.text) answer.grow(turn.text);
    const watch = {
      grew: (): void => {
        drop(old);
        answer.grow(turn.text);
      },
      broken: (now: boolean): void => answer.hint(now ? this.texts.broken : ""),
    };
    if (!turn.reply) void this.client.keep().catch(() => {});
    const ending = await this.#conversation.run(turn, watch);
    if (this.#last !== last) return;
    const read = answer.finish(turn.text);
    this.#panel.writing(false);
    if (ending !== "left") this.#end(ending, read, true);
  }

  /** Show how the latest answer ended, and say it if it ended just now. */
  #end(ending: Ending, read: string, now: boolean): void {
    const { turn, answer } = this.#last!;
    if (now && !this.#shown) this.launcher.setAttribute("aria-description", this.texts.complete);
    if (ending instanceof Problem) return this.#trouble(answer, ending, () => void this.#again(turn, ending), turn.text);
    const hint = ending === "whole" || ending === "left" ? "" : this.texts[ending];
    answer.hint(hint);
    answer.complete(turn);
    if (!now) return;
    this.#panel.announce(ending === "stopped" ? hint : [this.texts.complete, read, hint].filter(Boolean).join(" "));
    this.#emit("response.end", bare({ finish: turn.finish, text: turn.text }));
  }

  /** Go on with an answer that broke off, or have the question answered anew. */
  async #again(turn: Turn, problem?: Problem): Promise<void> {
    const last = this.#last;
    if (!last || this.#panel.composer.busy) return;
    const { question, answer, old } = last;
    const goOn = problem && turn.finish === null && ["cut", "unreachable", "offline"].includes(problem.kind);
    if (turn.reply && !(goOn && problem.code !== "reply_unknown")) {
      answer.settle();
      return this.#run(turnOf(turn.question, turn.reply), question, answer.node);
    }
    drop(answer.node);
    if (problem?.kind !== "refused") return this.#run(turn, question, old);
    // The same question would be refused again: the visitor changes it. What has an answer stays.
    if (!old) drop(question);
    this.#last = undefined;
    this.#panel.composer.put(turn.question);
  }

  async #rate(turn: Turn, comment?: string): Promise<boolean> {
    const rated = this.#conversation.rate(turn, comment);
    this.#emit("feedback", bare({ rating: turn.rating, text: comment ?? "" }));
    return rated.then(() => true, () => false);
  }

  /** Say what went wrong and offer to try again; what had arrived of the answer stays. */
  #trouble(answer: Answer, problem: Problem, retry: () => void, text = ""): void {
    this.#stopWaiting();
    const words = wordsOf(problem, this.texts, text);
    const { line, button } = answer.trouble(words, () => {
      this.#stopWaiting();
      this.#panel.focus();
      retry();
    });
    if (problem.seconds) this.#stopWaiting = waitFor(this.#panel, line, button, problem.seconds);
    else this.#panel.announce(words);
    if (problem.kind === "unreachable") console.warn(UNREACHABLE);
    this.#emit("error", bare({ kind: problem.kind, code: problem.code }));
  }

  /** Tell the page; what was written only if its developer asked for it. */
  #emit(name: string, detail: Record<string, unknown> = bare({})): void {
    const { skill, eventText } = this.client.settings;
    if (!eventText) delete detail.text;
    const told = bare({ ...detail, skill, reply: this.#last?.turn.reply || undefined });
    this.root.host.dispatchEvent(new CustomEvent(`skillchat:${name}`, bare({ bubbles: true, composed: true, detail: told })));
  }
}
