/**
 * The app, loaded when the visitor first opens the chat: joins the panel to the conversation.
 * `start` is what every loader, old or new, calls; its signature must not change.
 */
import type { Answer } from "./answer.ts";
import answerStyle from "./answer.css";
import { Client } from "./client.ts";
import { Conversation, type Ending } from "./conversation.ts";
import { adopt } from "./dom.ts";
import { Panel } from "./panel.ts";
import panelStyle from "./panel.css";
import { Problem } from "./problem.ts";
import { textsFor } from "./texts.ts";

/** For the page's developer: the browser does not tell the widget which of the two it is. */
const UNREACHABLE = "Secateur: the server is down, or this page's origin is not one of the skill's origins";

/** Build the chat beside its launcher; `base` is the address of the folder that widget.js lies in. */
export function start(root: ShadowRoot, launcher: HTMLButtonElement, base: string, skill: string): Chat {
  adopt(root, panelStyle + answerStyle);
  return new Chat(root, launcher, new Client(base, skill));
}

class Chat {
  #texts = textsFor(document.documentElement.lang || navigator.language);
  #panel: Panel;
  #conversation: Conversation;
  #request: AbortController | null = null;
  #last: Answer | null = null;
  #countdown: ReturnType<typeof setInterval> | undefined;
  #known = false;

  constructor(
    readonly root: ShadowRoot,
    readonly launcher: HTMLButtonElement,
    readonly client: Client,
  ) {
    this.#conversation = new Conversation(client);
    this.#panel = new Panel(this.#texts, {
      send: (question) => void this.#ask(question),
      stop: () => this.#request?.abort(),
      close: () => this.close(),
    });
    this.#panel.node.hidden = true;
    root.append(this.#panel.node);
    addEventListener("pagehide", () => this.#request?.abort());
  }

  /** Show the panel in the launcher's place. */
  open(): void {
    this.#show(true);
    this.#panel.focus();
    if (!this.#known) void this.#introduce();
  }

  close(): void {
    this.#show(false);
    this.launcher.focus({ preventScroll: true });
  }

  #show(open: boolean): void {
    this.#panel.node.hidden = !open;
    this.launcher.hidden = open;
    this.launcher.setAttribute("aria-expanded", String(open));
  }

  async #introduce(): Promise<void> {
    this.#known = true;
    try {
      const { title, greeting } = await this.client.about(AbortSignal.timeout(20_000));
      this.#panel.name(title, greeting);
    } catch (error) {
      const answer = this.#panel.answer();
      answer.finish("");
      const problem = error instanceof Problem ? error : new Problem("unreachable");
      this.#trouble(answer, problem, () => {
        answer.node.remove();
        void this.#introduce();
      });
    }
  }

  async #ask(question: string): Promise<void> {
    this.#last?.settle();
    this.#panel.question(question);
    await this.#answer(question);
  }

  async #answer(question: string): Promise<void> {
    const answer = this.#panel.answer();
    const request = (this.#request = new AbortController());
    let text = "";
    this.#last = answer;
    this.#panel.writing(true);
    this.#panel.announce(this.#texts.writing);
    const ending = await this.#conversation.ask(question, request.signal, (soFar) => answer.grow((text = soFar)));
    this.#panel.writing(false);
    this.#end(answer, ending, answer.finish(text), () => {
      answer.node.remove();
      this.#conversation.forget();
      void this.#answer(question);
    });
  }

  #end(answer: Answer, ending: Ending, text: string, retry: () => void): void {
    if (ending instanceof Problem) return this.#trouble(answer, ending, retry, text);
    const hint = ending === "whole" ? "" : this.#texts[ending];
    if (hint) answer.hint(hint);
    this.#panel.announce(ending === "stopped" ? hint : [this.#texts.complete, text, hint].filter(Boolean).join(" "));
  }

  /** Say what went wrong and offer to try again; what had arrived of the answer stays. */
  #trouble(answer: Answer, problem: Problem, retry: () => void, text = ""): void {
    const words = this.#words(problem, text);
    const { line, button } = answer.trouble(words, () => {
      this.#panel.focus();
      retry();
    });
    if (problem.seconds) this.#wait(line, button, problem.seconds);
    else this.#panel.announce(words);
    if (problem.kind === "unreachable") console.warn(UNREACHABLE);
  }

  #words(problem: Problem, text: string): string {
    const { kind, detail, seconds } = problem;
    if (seconds) return this.#texts.wait(seconds);
    if (kind === "cut" && text) return this.#texts.incomplete;
    // The server's own sentence helps where the visitor can act on it.
    return [this.#texts.problems[kind], kind === "refused" && detail].filter(Boolean).join(" ");
  }

  /** Count down to when the server said that it may be asked again. */
  #wait(line: HTMLElement, button: HTMLButtonElement, seconds: number): void {
    const tick = (): void => {
      const waiting = seconds > 0;
      line.textContent = waiting ? this.#texts.wait(seconds--) : this.#texts.ready;
      button.disabled = waiting;
      this.#panel.enable(!waiting);
      if (waiting) return;
      clearInterval(this.#countdown);
      this.#panel.announce(this.#texts.ready);
    };
    clearInterval(this.#countdown);
    this.#countdown = setInterval(tick, 1000);
    tick();
    this.#panel.announce(line.textContent ?? "");
  }
}
