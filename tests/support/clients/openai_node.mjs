// The `openai` package for Node.
import assert from "node:assert";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { BASE, DIALS, KEY, MODEL, PROFILE, SHORT, SYSTEM, TOOL_MODEL, USER, atDials, refusal, run } from "./harness.mjs";

const client = new OpenAI({ baseURL: BASE, apiKey: KEY });
const Opinion = z.object({ mood: z.enum(["good", "bad"]), stars: z.union([z.literal(1), z.literal(2)]) });
const parameters = { type: "object", properties: { city: { enum: ["Rome", "Oslo"] } }, required: ["city"] };
const TOOLS = [{ type: "function", function: { name: "weather", parameters } }];
const ask = (fields = {}) => client.chat.completions.create({ model: MODEL, messages: [USER], ...fields });

async function chat() {
  assert((await ask()).choices[0].message.content);
}

async function stream() {
  let text = "";
  for await (const chunk of await ask({ stream: true })) text += chunk.choices[0].delta.content ?? "";
  assert(text);
  assert(await client.chat.completions.stream({ model: MODEL, messages: [USER] }).finalContent());
}

async function system() {
  assert((await ask({ messages: [SYSTEM, USER] })).choices[0].message.content);
}

async function turns() {
  const first = (await ask({ max_tokens: SHORT })).choices[0].message;
  assert((await ask({ messages: [USER, first, USER] })).choices[0].message);
}

async function json() {
  const form = zodResponseFormat(Opinion, "opinion");
  const parsed = await client.chat.completions.parse({ model: MODEL, messages: [USER], response_format: form });
  assert(parsed.choices[0].message.parsed.stars);
}

async function tools() {
  const called = (await ask({ model: TOOL_MODEL, tools: TOOLS, tool_choice: "required" })).choices[0].message;
  assert.equal(called.tool_calls[0].function.name, "weather");
  const result = { role: "tool", tool_call_id: called.tool_calls[0].id, content: "Rain." };
  await ask({ model: TOOL_MODEL, messages: [USER, called, result], tools: TOOLS, tool_choice: "none" });
  const fields = { model: TOOL_MODEL, messages: [USER], tools: TOOLS, tool_choice: "required" };
  const streamed = await client.chat.completions.stream(fields).finalMessage();
  assert.equal(streamed.tool_calls[0].function.name, "weather");
}

async function profile() {
  assert.notDeepEqual((await ask({ model: PROFILE })).steering.effective, (await ask()).steering.effective);
}

async function attributes() {
  const answer = await ask({ attributes: DIALS, temperature: 0, max_tokens: SHORT });
  assert.equal(answer.choices[0].message.content, await atDials());
}

async function measured() {
  assert((await ask({ score: true })).steering.measured);
}

async function logprobs() {
  assert.equal((await ask({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content[0].top_logprobs.length, 2);
}

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert(names.includes((await client.models.retrieve(PROFILE)).id));
}

async function completions() {
  assert((await client.completions.create({ model: MODEL, prompt: "Owls are" })).choices[0].text);
}

async function responses() {
  assert((await client.responses.create({ model: MODEL, input: "Tell me about owls." })).output_text);
}

const errors = () => refusal(() => ask({ attributes: { humour: 4 } }), "humour");

await run(chat, stream, system, turns, json, tools, profile, attributes, measured, logprobs, models, completions);
await run(responses, errors);
