// Buttons that save a figure as it stands on the page, as PNG or SVG. The browser draws it: nothing is sent anywhere.
// An image cannot use the page's own fonts: what is measured must be what is drawn, so it gets the system's.
function systemFonts(part) {
  for (const [name, value] of Object.entries(part ?? {})) {
    if (name === "family") part[name] = value.replace(/"Source [^"]*",\s*/g, "");
    else if (typeof value === "object") systemFonts(value);
  }
  return part;
}

async function save(data, format) {
  await loadPlotly(data.plotly);
  const shown = document.querySelector(`.st-key-${CSS.escape(data.key)} .js-plotly-plot`);
  const drawn = data.figure ?? shown;
  const width = Math.max(480, Math.round(shown?.clientWidth || 960));
  const height = Math.round(drawn.layout.height || shown?.clientHeight || 420) + 40;
  const margin = { ...drawn.layout.template?.layout?.margin, ...drawn.layout.margin };
  const layout = {
    ...systemFonts(structuredClone(drawn.layout)),
    autosize: false, width, height,
    paper_bgcolor: data.paper, plot_bgcolor: data.paper,
    title: { text: data.title, x: 0, xref: "container", xanchor: "left", y: 1, yref: "container", yanchor: "top",
             pad: { l: 12, t: 14 }, font: { color: data.ink, size: data.size } },
    margin: { ...margin, t: (margin.t ?? 44) + 40, l: Math.max(12, margin.l ?? 0), r: Math.max(12, margin.r ?? 0),
              b: Math.max(12, margin.b ?? 0) },
  };
  const traces = systemFonts(structuredClone(drawn.data));
  const url = await window.Plotly.toImage({ data: traces, layout }, { format, width, height, scale: format === "png" ? 2 : 1 });
  const link = document.createElement("a");
  link.href = url;
  link.download = `${data.file}.${format}`;
  link.click();
}

export default function (component) {
  const { data, parentElement } = component;
  for (const button of parentElement.querySelectorAll("[data-format]")) {
    button.onclick = async () => {
      button.disabled = true;
      try {
        await save(data, button.dataset.format);
      } finally {
        button.disabled = false;
        button.focus();
      }
    };
  }
}
