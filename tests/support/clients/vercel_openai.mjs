// The Vercel AI SDK with @ai-sdk/openai: the responses route, which is its default, and OpenAI's other two.
import assert from "node:assert";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";
import { BASE, DIALS, KEY, MODEL, SHORT, TEXT, atDials, refusal } from "./harness.mjs";
import { tried } from "./vercel_features.mjs";

const openai = createOpenAI({ baseURL: BASE, apiKey: KEY });
const header = Object.entries(DIALS).map(([name, value]) => `${name}=${value}`).join(",");
const headers = { "X-SteerLM-Attributes": header };

async function attributes() {
  const fields = { prompt: TEXT, temperature: 0, maxOutputTokens: SHORT };
  const byHeader = await generateText({ model: openai(MODEL), headers, ...fields });
  assert.equal(byHeader.text, await atDials());
  const noted = { openai: { metadata: { attributes: header } } };
  const byNote = await generateText({ model: openai.chat(MODEL), providerOptions: noted, ...fields });
  assert.equal(byNote.text, await atDials());
}

async function logprobs() {
  const providerOptions = { openai: { logprobs: 2 } };
  const answer = await generateText({ model: openai.chat(MODEL), prompt: TEXT, providerOptions });
  assert(answer.providerMetadata.openai.logprobs.length);
}

async function completions() {
  assert((await generateText({ model: openai.completion(MODEL), prompt: "Owls are" })).text);
}

async function responses() {
  assert((await generateText({ model: openai.responses(MODEL), prompt: TEXT })).text);
}

const errors = () =>
  refusal(() => generateText({ model: openai(MODEL), prompt: TEXT, headers: { "X-SteerLM-Attributes": "humour=4" } }), "humour");

await tried((name) => openai(name), attributes, logprobs, completions, responses, errors);
