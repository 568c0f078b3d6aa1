/** Wraps the chat for Vue 3; renders on servers too. */
import { defineComponent, h, onBeforeUnmount, onMounted } from "vue";
import { attributesOf, chatsOf, float, type ChatOptions } from "./shared.ts";

export type { ChatOptions };

/** A chat in the page's flow; its options are attributes, which may change. */
export const Chat = defineComponent({
  inheritAttrs: false,
  setup(_, { attrs }) {
    onMounted(() => void chatsOf(String(attrs.server)));
    return () => h("skill-chat", attributesOf(attrs as ChatOptions));
  },
});

/** A floating chat, which comes and goes with the component. */
export const FloatingChat = defineComponent({
  inheritAttrs: false,
  setup(_, { attrs }) {
    let remove = (): void => {};
    onMounted(() => (remove = float(attrs as ChatOptions)));
    onBeforeUnmount(() => remove());
    return () => null;
  },
});
