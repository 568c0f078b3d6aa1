// Vercel's AI SDK: @ai-sdk/openai with its default (Responses) and by chat, and @ai-sdk/openai-compatible.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { check, encoder, feature, key, model, url } from "./report.mjs";

const openai = createOpenAI({ baseURL: url, apiKey: key });
const compatible = createOpenAICompatible({
  name: "secateur", baseURL: url, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
});
const plain = createOpenAICompatible({ name: "secateur", baseURL: url, apiKey: key });
const prompt = "What is Secateur?";
const options = { maxRetries: 0, maxOutputTokens: 160 };
const schema = z.object({ title: z.string(), urgent: z.boolean() });
const weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `18 degrees in ${city}`,
});

for (const [name, chosen] of [
  ["@ai-sdk/openai, Responses", openai(model)],
  ["@ai-sdk/openai, chat", openai.chat(model)],
  ["@ai-sdk/openai-compatible", compatible(model)],
]) {
  await feature(`${name}: generateText`, async () => {
    const reply = await generateText({ model: chosen, prompt, ...options });
    check(reply.usage.outputTokens > 0, "usage");
    return reply.text;
  });
  await feature(`${name}: streamText`, async () => {
    let failure;
    const reply = streamText({ model: chosen, prompt, ...options, onError: ({ error }) => (failure = error) });
    const text = await reply.text;
    if (failure) throw failure;
    return text;
  });
  await feature(`${name}: generateObject`, async () =>
    (await generateObject({ model: chosen, prompt: "File a ticket in JSON.", schema, ...options })).object);
  await feature(`${name}: tools of two steps`, async () => {
    const reply = await generateText({
      model: chosen, prompt: "How is the weather in Paris?", tools: { weather }, ...options,
      stopWhen: stepCountIs(2), prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
    });
    check(reply.steps[0].toolResults.length > 0, "the tool was called");
    return [reply.steps[0].toolResults[0].output, reply.text];
  });
}
await feature("@ai-sdk/openai-compatible, json_object: generateObject", async () => {
  const wanted = { model: plain(model), prompt: "Answer in JSON: a title.", output: "no-schema", ...options };
  return (await generateObject(wanted)).object;
});
await feature("@ai-sdk/openai-compatible: completion", async () =>
  (await generateText({ model: compatible.completionModel(model), prompt: "The sky is", ...options })).text);
await feature("@ai-sdk/openai: embed", async () =>
  (await embed({ model: openai.embedding(encoder), value: "a cat", maxRetries: 0 })).embedding.length);
