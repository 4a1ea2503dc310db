// What both of the Vercel AI SDK's providers for OpenAI's shape are tried on.
import assert from "node:assert";
import { generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { MODEL, PROFILE, SHORT, TEXT, TOOL_MODEL, expected, run } from "./harness.mjs";

const schema = z.object({ mood: z.enum(["good", "bad"]), stars: z.union([z.literal(1), z.literal(2)]) });
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.enum(["Rome", "Oslo"]) }),
  execute: async ({ city }) => `Rain in ${city}.`,
});

export async function tried(model, ...more) {
  const ask = (fields = {}) => generateText({ model: model(MODEL), prompt: TEXT, ...fields });

  async function chat() {
    assert((await ask()).text);
  }

  async function stream() {
    const result = streamText({ model: model(MODEL), prompt: TEXT });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    assert(text);
  }

  async function system() {
    assert((await ask({ system: "Answer in one sentence." })).text);
  }

  async function turns() {
    const messages = [
      { role: "user", content: TEXT },
      { role: "assistant", content: "Owls hunt at night." },
      { role: "user", content: TEXT },
    ];
    assert((await generateText({ model: model(MODEL), messages })).text);
  }

  async function json() {
    assert((await generateObject({ model: model(MODEL), schema, prompt: TEXT })).object.stars);
    const { partialObjectStream, object } = streamObject({ model: model(MODEL), schema, prompt: TEXT });
    for await (const _ of partialObjectStream);
    assert((await object).stars);
    assert((await ask({ output: Output.object({ schema }) })).output.stars);
  }

  async function tools() {
    const own = { model: model(TOOL_MODEL), prompt: TEXT, tools: { weather }, toolChoice: "required" };
    const made = await generateText(own);
    assert.equal(made.toolCalls[0].toolName, "weather");
    assert(made.toolResults[0].output.startsWith("Rain in "));
    const streamed = streamText(own);
    assert.equal((await streamed.toolCalls)[0].toolName, "weather");
    await generateText({ ...own, toolChoice: "auto", stopWhen: stepCountIs(2) });
  }

  async function profile() {
    const answer = await ask({ model: model(PROFILE), temperature: 0, maxOutputTokens: SHORT });
    assert.equal(answer.text, await expected({ model: PROFILE }));
  }

  await run(chat, stream, system, turns, json, tools, profile, ...more);
}
