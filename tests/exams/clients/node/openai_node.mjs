// The official client for Node.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { check, encoder, feature, key, model, url } from "./report.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0, timeout: 300_000 });
const messages = [{ role: "user", content: "What is Secateur?" }];
const Ticket = z.object({ title: z.string(), urgent: z.boolean() });
const weather = zodFunction({ name: "weather", parameters: z.object({ city: z.string() }) });

await feature("chat", async () => {
  const reply = await client.chat.completions.create({ model, messages, max_tokens: 24 });
  check(reply.choices[0].message.content, "text");
  return reply.choices[0].message.content;
});
await feature("chat, stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages, max_tokens: 24 });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  check((await stream.finalContent()) === text, "the deltas are the text");
  return text;
});
await feature("structured output, parse", async () => {
  const reply = await client.chat.completions.parse({
    model, messages, max_tokens: 160, response_format: zodResponseFormat(Ticket, "ticket"),
  });
  return Ticket.parse(reply.choices[0].message.parsed);
});
await feature("tools, parsed", async () => {
  const reply = await client.chat.completions.parse({ model, messages, tools: [weather], tool_choice: "required" });
  return reply.choices[0].message.tool_calls[0].function.parsed_arguments;
});
await feature("runTools, two turns", async () => {
  const run = client.chat.completions.runTools({
    model,
    messages: [{ role: "user", content: "How is the weather in Paris?" }],
    stop: ["."],
    tools: [{
      type: "function",
      function: {
        name: "weather", description: "The weather in a city.", parse: JSON.parse,
        function: ({ city }) => `18 degrees in ${city}`,
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
      },
    }],
  });
  return await run.finalContent();
});
await feature("completions", async () =>
  (await client.completions.create({ model, prompt: "The sky is", max_tokens: 6 })).choices[0].text);
await feature("responses, streamed", async () => {
  const stream = client.responses.stream({ model, input: "What is Secateur?", max_output_tokens: 24 });
  const final = await stream.finalResponse();
  check(final.output_text, "text");
  return final.output_text;
});
await feature("responses, parse", async () => {
  const reply = await client.responses.parse({
    model, input: "File a ticket in JSON.", text: { format: zodTextFormat(Ticket, "ticket") },
  });
  return Ticket.parse(reply.output_parsed);
});
await feature("embeddings", async () =>
  (await client.embeddings.create({ model: encoder, input: ["a cat"] })).data[0].embedding.length);
await feature("models", async () => (await client.models.retrieve(model)).id);
