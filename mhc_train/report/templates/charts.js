// Reads charts out: a guide and a tooltip follow the pointer, a finger or the arrow keys, and a live region says the values.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const MOST = 12; // rows that a tooltip holds
  const live = add(document.body, "p", "hidden");
  live.setAttribute("aria-live", "polite");
  let open = null; // the chart that is read now

  function add(parent, tag, name, text = "") {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return parent.appendChild(made);
  }

  function written(value) {
    const small = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5);
    return (small ? value.toExponential(3) : String(Number(value.toPrecision(5)))).replace("-", "\u2212");
  }

  // Where on the SVG a value of the y axis stands.
  function height(data, value) {
    const scale = data.y[2] ? Math.log : (number) => number;
    const [low, high] = data.y.map(scale);
    return data.box[3] - ((scale(value) - low) / (high - low)) * (data.box[3] - data.box[1]);
  }

  // The curves that have a value at a stop; of many, those next to the pointer, or without one the first.
  function rows(data, stop, y) {
    const known = data.lines.filter((line) => line.values[stop] !== null);
    const far = (line) => Math.abs(height(data, line.values[stop]) - y);
    return (y === null ? known : known.sort((a, b) => far(a) - far(b))).slice(0, MOST);
  }

  function prepare(svg) {
    const figure = svg.closest("figure");
    const data = JSON.parse(svg.dataset.readout);
    const guide = svg.appendChild(document.createElementNS(SVG, "g"));
    guide.setAttribute("class", "guide");
    const tip = add(figure, "div", "tip");
    tip.setAttribute("aria-hidden", "true");
    return { svg, figure, data, at: data.at.split("|"), guide, tip, stop: data.x.length };
  }

  function mark(chart, tag, attributes) {
    const made = chart.guide.appendChild(document.createElementNS(SVG, tag));
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  }

  function show(chart, stop, y) {
    if (open && open !== chart) hide();
    open = chart;
    chart.stop = stop;
    const { data, tip, guide, svg } = chart;
    const [x, found] = [data.x[stop], rows(data, stop, y)];
    guide.replaceChildren();
    mark(chart, "line", { x1: x, x2: x, y1: data.box[1], y2: data.box[3] });
    for (const line of found) {
      const y = height(data, line.values[stop]);
      if (y >= data.box[1]) mark(chart, "circle", { cx: x, cy: y, r: 3, fill: line.colour }); // else it is cut off above
    }
    tip.replaceChildren();
    add(tip, "strong", "", chart.at[stop]);
    const ordered = [...found].sort((a, b) => b.values[stop] - a.values[stop]);
    for (const line of ordered) {
      add(tip, "span", "", line.name).style.borderColor = line.colour;
      add(tip, "span", "", written(line.values[stop]));
    }
    tip.hidden = false;
    const box = svg.getBoundingClientRect();
    const left = (x / svg.viewBox.baseVal.width) * box.width;
    const over = left > box.width / 2;
    const room = Math.max(0, over ? left - tip.offsetWidth - 10 : Math.min(left + 10, box.width - tip.offsetWidth));
    tip.style.left = `${room}px`;
    tip.style.top = `${box.top - chart.figure.getBoundingClientRect().top}px`;
    return `${chart.at[stop]}: ${ordered.map((line) => `${line.name} ${written(line.values[stop])}`).join(", ")}`;
  }

  function hide() {
    if (!open) return;
    open.guide.replaceChildren();
    open.tip.hidden = true;
    open.stop = open.data.x.length;
    open = null;
    live.textContent = "";
  }

  function nearest(numbers, wanted) {
    return numbers.reduce((best, number, at) => (Math.abs(number - wanted) < Math.abs(numbers[best] - wanted) ? at : best), 0);
  }

  for (const svg of document.querySelectorAll("svg[data-readout]")) {
    let made = null; // only once it is read, so that a page of many charts opens at once
    const chart = () => (made ??= prepare(svg));
    svg.setAttribute("tabindex", "0");
    const follow = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      show(chart(), nearest(chart().data.x, point.x), point.y);
    };
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const last = chart().data.x.length - 1;
      const stops = { ArrowLeft: Math.min(last, chart().stop - 1), ArrowRight: chart().stop + 1, Home: 0, End: last };
      if (event.key === "Escape") return hide();
      if (!(event.key in stops)) return;
      event.preventDefault();
      // The first arrow to the right begins at the left end.
      const stop = event.key === "ArrowRight" && chart().stop > last ? 0 : stops[event.key];
      live.textContent = show(chart(), Math.max(0, Math.min(last, stop)), null);
    });
  }
})();
