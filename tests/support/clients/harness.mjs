// harness.py, for clients on Node: a feature is a function; it throws if the client fails, and returns a note.
import assert from "node:assert";

export const URL = process.env.STEERLM_URL;
export const BASE = `${URL}/v1`;
export const [MODEL, PROFILE, TOOL_MODEL] = ["demo", "demo:education", "chatml"];
export const KEY = "none";
export const TEXT = "Tell me about owls.";
export const USER = { role: "user", content: TEXT };
export const SYSTEM = { role: "system", content: "Answer in one sentence." };
export const SHORT = 24;
export const DIALS = { helpfulness: 0, humor: 4 };
const SHOWN_CHARS = 400;

export async function expected(fields = {}) {
  const body = { model: MODEL, messages: [USER], temperature: 0, max_tokens: SHORT, ...fields };
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(`${BASE}/chat/completions`, { method: "POST", headers, body: JSON.stringify(body) });
  return (await answer.json()).choices[0].message.content;
}

export async function atDials() {
  const answer = await expected({ attributes: DIALS });
  assert.notEqual(answer, await expected(), "the dials change nothing");
  return answer;
}

export async function refusal(call, word) {
  try {
    await call();
  } catch (problem) {
    const said = `${problem.message} ${problem.responseBody ?? ""}`;
    assert(said.includes(word), `${word} is not in ${said}`);
    return problem.message.slice(0, SHOWN_CHARS);
  }
  assert.fail("nothing was refused");
}

export async function run(...features) {
  const wanted = process.argv.slice(2);
  for (const feature of features) {
    if (wanted.length && !wanted.includes(feature.name)) continue;
    let line;
    try {
      line = { works: true, note: (await feature()) ?? "" };
    } catch (problem) {
      console.error(problem);
      line = { works: false, note: `${problem.name}: ${problem.message}`.slice(0, SHOWN_CHARS) };
    }
    console.log(JSON.stringify({ feature: feature.name, ...line }));
  }
}
