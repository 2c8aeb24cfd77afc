// Keys of the presenter view, wherever the focus is; a field in which one writes or moves keeps the keys it needs itself.
const TURNS = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 };

function taken(event) {
  const field = event.composedPath()[0];
  if (!(field instanceof Element)) return false;
  if (field.closest("textarea, select, [contenteditable=true], [role=listbox], [role=combobox]")) return true;
  const arrows = event.key.startsWith("Arrow");
  return arrows && field.closest("input, [role=slider], [role=radiogroup], [role=grid], [role=tablist], .js-plotly-plot") !== null;
}

function pressed(root, event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.isComposing) return;
  if (event.key === "Escape" && !document.fullscreenElement && !document.querySelector("[role=dialog], [role=listbox]")) {
    root.send("left", true);
  } else if (event.key in TURNS && !taken(event)) {
    event.preventDefault();
    root.send("turned", TURNS[event.key]);
  }
}

export default function ({ parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".keys");
  root.send = setTriggerValue;
  root.stop?.(); // of the drawing before, whose own end may come only after this beginning
  const listen = (event) => pressed(root, event);
  document.addEventListener("keydown", listen);
  root.dataset.listening = "";
  root.stop = () => document.removeEventListener("keydown", listen);
  return root.stop;
}
