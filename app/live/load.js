// plotly.js, fetched from this server when a component first needs it; shared by all of them.
function loadPlotly(url) {
  if (window.Plotly) return Promise.resolve();
  window.headscopePlotly ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL(url, document.location.origin).href;
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
  return window.headscopePlotly;
}
