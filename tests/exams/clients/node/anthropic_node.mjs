// Anthropic's client for Node, on /v1/messages.
import Anthropic from "@anthropic-ai/sdk";
import { feature, key, model, url } from "./report.mjs";

const client = new Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "What is Secateur?" }];

await feature("messages", async () => (await client.messages.create({ model, messages, max_tokens: 24 })).content[0].text);
await feature("messages, streamed", async () => client.messages.stream({ model, messages, max_tokens: 24 }).finalText());
