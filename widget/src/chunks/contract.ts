/** Types shared by the app and its chunks, which are built together. */
import type { Citation, Turn } from "../conversation/turn.ts";
import type { MarkdownExtension } from "../markdown/renderer.ts";
import type { Texts } from "../texts/languages/en.ts";
import type { Client } from "../transport/client.ts";

/** What a chunk may ask of the panel around it. */
export interface Surroundings {
  texts: Texts;
  /** Announces a text once to screen readers. */
  announce(text: string): void;
  /** Keeps the log's end in view after a change of height. */
  followEnd(): void;
  client: Client;
  /** Asks for another answer to the same question. */
  again(turn: Turn): void;
  /** Puts the question into the field, whose text then takes its place. */
  edit(turn: Turn): void;
}

/** A module of rare code; `style` is its stylesheet. */
interface Chunk {
  style: string;
}

/** Tables, code blocks and sources. */
export interface Rich extends Chunk {
  markdown(surroundings: Surroundings): MarkdownExtension;
  sourceList(citations: Citation[], surroundings: Surroundings): HTMLElement;
}

/** What a visitor can do with a complete turn. */
export interface TurnActions extends Chunk {
  /** Creates the row of buttons below the answer `content`, with a place for the comment form. */
  answerActions(turn: Turn, surroundings: Surroundings, content: HTMLElement): HTMLElement;
  /** Resolves to what is announced of the answer, once a screen reader can take it. */
  spoken(content: HTMLElement, texts: Texts): Promise<string>;
}

/** The countdown of a server that is busy. */
export interface Busy extends Chunk {
  /** Shows the seconds until `end` in `line`, and blocks sending and `button` until then; returns a function that cancels it. */
  countDown(panel: BusyPanel, line: HTMLElement, button: HTMLButtonElement, end: number): () => void;
}

export interface BusyPanel {
  texts: Texts;
  composer: Pick<FieldComposer, "setEnabled">;
  announce(text: string): void;
}

/** A panel that fills the screen. */
export interface Phone extends Chunk {
  /** Makes the panel modal and fits it to the screen while that is small, until `signal` aborts; Android's Back calls `close`. */
  fillScreen(panel: HTMLElement, signal: AbortSignal, close: () => void): void;
}

/** The draft of a question and its limit. */
export interface Field extends Chunk {
  /** Restores and keeps the draft of `field`, and tells how much of the limit is left. */
  watchField(composer: FieldComposer, texts: Texts, store: DraftStore): void;
}

export interface FieldComposer {
  node: HTMLElement;
  field: HTMLTextAreaElement;
  limit: number;
  setEnabled(enabled: boolean, reason: string): void;
  setText(text: string): void;
}

export interface DraftStore {
  read(): { draft: string };
  write(changes: { draft: string }): void;
}

/** The undoing of "New chat". */
export interface Undo extends Chunk {
  /**
   * Hides the turns, shows the introduction and a button that brings the turns back.
   * Returns the function that makes it final; `done` is called once, with whether it was undone.
   */
  clearLog(panel: UndoPanel, introduce: () => void, done: (undone: boolean) => void): () => void;
}

export interface UndoPanel {
  log: HTMLElement;
  newChat: HTMLButtonElement;
  texts: Texts;
  announce(text: string): void;
}

/** The chunks by name. */
export interface Extras {
  rich: Rich;
  turn: TurnActions;
  phone: Phone;
  field: Field;
  undo: Undo;
  busy: Busy;
}
