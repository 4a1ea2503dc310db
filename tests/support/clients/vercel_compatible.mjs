// The Vercel AI SDK with @ai-sdk/openai-compatible.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";
import { BASE, DIALS, KEY, MODEL, SHORT, TEXT, atDials, refusal } from "./harness.mjs";
import { tried } from "./vercel_features.mjs";

const provider = createOpenAICompatible({ name: "steerlm", baseURL: BASE, apiKey: KEY, supportsStructuredOutputs: true });

async function attributes() {
  const providerOptions = { steerlm: { attributes: DIALS } };
  const fields = { prompt: TEXT, temperature: 0, maxOutputTokens: SHORT };
  assert.equal((await generateText({ model: provider(MODEL), providerOptions, ...fields })).text, await atDials());
}

async function measured() {
  const providerOptions = { steerlm: { score: true } };
  const answer = await generateText({ model: provider(MODEL), prompt: TEXT, providerOptions });
  assert(answer.response.body.steering.measured);
}

async function completions() {
  assert((await generateText({ model: provider.completionModel(MODEL), prompt: "Owls are" })).text);
}

const errors = () => {
  const providerOptions = { steerlm: { attributes: { humour: 4 } } };
  return refusal(() => generateText({ model: provider(MODEL), prompt: TEXT, providerOptions }), "humour");
};

await tried((name) => provider(name), attributes, measured, completions, errors);
