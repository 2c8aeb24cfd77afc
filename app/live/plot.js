// A figure as the server gives it, in a place that has its height before it is drawn.
export default function (component) {
  const { data, parentElement } = component;
  const body = parentElement.querySelector(".plot");
  const { data: traces, layout } = structuredClone(data.figure);
  body.style.minHeight = `${layout.height}px`;
  body.setAttribute("aria-label", data.summary);
  loadPlotly(data.plotly).then(() => window.Plotly.react(body, traces, layout, { displayModeBar: false, responsive: true }));
}
