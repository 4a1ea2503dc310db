"""Writes docs/steps.svg, the picture of the four steps: python docs/steps_figure.py"""

from pathlib import Path
from xml.sax.saxutils import escape

STEPS = [
    ("1 · Predict", "Ray Train, DeepSpeed", ["learn to rate answers", "from people's ratings"], "predictor"),
    ("2 · Annotate", "Ray Data", ["rate every answer of", "every conversation"], "rated rows"),
    ("3 · Condition", "Ray Train, DeepSpeed", ["learn to answer", "at given ratings"], "policy"),
    ("4 · Bootstrap", "Ray Data, Ray Train", ["sample at the best", "ratings, train again"], "better policy"),
    ("Serve", "Ray Serve", ["each request sets", "its own attributes"], ""),
]
WIDTH, HEIGHT, GAP, TOP = 150, 128, 32, 14
STYLE = """
  .box { fill: #ffffff; stroke: #1f6f78; stroke-width: 1.5 }
  .serve { stroke: #a5512b }
  .name { font-weight: 600; font-size: 16px }
  .ray { fill: #1f6f78; font-size: 13px }
  .what, .loop { fill: #57606a; font-size: 13px }
  .result { font-size: 13px; font-style: italic }
  .arrow { stroke: #57606a; stroke-width: 1.5; fill: none; marker-end: url(#head) }
"""


def text(x: float, y: float, kind: str, content: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="middle">{escape(content)}</text>'


def box(left: int, name: str, ray: str, what: list[str], result: str) -> list[str]:
    middle = left + WIDTH / 2
    kind = "box" if result else "box serve"
    lines = [text(middle, TOP + 72 + 17 * number, "what", line) for number, line in enumerate(what)]
    return [
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="10" class="{kind}"/>',
        text(middle, TOP + 26, "name", name),
        text(middle, TOP + 47, "ray", ray),
        *lines,
        *([text(middle, TOP + 113, "result", f"→ {result}")] if result else []),
    ]


def figure() -> str:
    """The whole SVG: boxes from left to right, arrows between them, and the loop of the bootstrap rounds."""
    lefts = [14 + place * (WIDTH + GAP) for place in range(len(STEPS))]
    bottom, half = TOP + HEIGHT, WIDTH / 2
    parts = [part for left, step in zip(lefts, STEPS, strict=True) for part in box(left, *step)]
    parts += [
        f'<path d="M{left + WIDTH + 3} {TOP + HEIGHT / 2:g} H{left + WIDTH + GAP - 4}" class="arrow"/>'
        for left in lefts[:-1]
    ]
    right, left = lefts[3] + half, lefts[1] + half
    parts.append(f'<path d="M{right:g} {bottom} V{bottom + 22} H{left:g} V{bottom + 5}" class="arrow"/>')
    parts.append(text((left + right) / 2, bottom + 39, "loop", "each round: rate the new samples, select, train"))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {lefts[-1] + WIDTH + 14} {bottom + 52}" role="img"
  font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" fill="#1f2328">
<title>The four steps of SteerLM on Ray, and the endpoint</title>
<style>{STYLE}</style>
<defs>
<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 L10 5 L0 10 z" fill="#57606a"/></marker>
</defs>
<rect width="100%" height="100%" rx="12" fill="#f6f8fa"/>
{chr(10).join(parts)}
</svg>
"""


if __name__ == "__main__":
    Path(__file__).with_name("steps.svg").write_text(figure(), encoding="utf-8")
