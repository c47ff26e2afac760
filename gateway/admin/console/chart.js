// Small charts of the last minutes, and the numbers that they are made of.

const WINDOW_MS = 300000;
const LEAST_WINDOW_MS = 60000;
const RATE_MS = 5000;

/** Readings of one number over time, the oldest first. */
class Series {
  constructor() {
    this.points = [];
  }

  add(at, value) {
    this.points.push([at, value]);
    while (this.points[0][0] < at - WINDOW_MS) this.points.shift();
  }
}

/** How fast numbers that only grow do so; a restart, after which they are smaller, is a beginning. */
class Rates {
  constructor() {
    this.readings = [];
  }

  add(at, values) {
    this.readings.push([at, values]);
    while (this.readings.length > 2 && this.readings[1][0] <= at - RATE_MS) this.readings.shift();
  }

  /** Return how much a number grew since the oldest reading, and in how many seconds. */
  growth(name) {
    const [first, then] = this.readings[0];
    const [last, now] = this.readings[this.readings.length - 1];
    const grown = (now.get(name) ?? 0) - (then.get(name) ?? 0);
    return [Math.max(0, grown), (last - first) / 1000];
  }

  perSecond(name) {
    const [grown, seconds] = this.growth(name);
    return seconds > 0 ? grown / seconds : 0;
  }
}

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 40;

/** Return an empty chart. Readers of screens get its numbers as text beside it. */
function makeChart() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const name of ["area", "stroke"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}

/** Draw a series up to `now`: what there is of it, over a minute to five, under its largest number or `least`. */
function draw(svg, series, now, least) {
  const top = Math.max(least, ...series.points.map(([, value]) => value)) * 1.1;
  const shown = Math.max(LEAST_WINDOW_MS, now - series.points[0][0]);
  const places = series.points.map(([at, value]) => {
    const x = WIDTH - ((now - at) / shown) * WIDTH;
    return `${x.toFixed(1)},${(HEIGHT - 1 - (value / top) * (HEIGHT - 2)).toFixed(1)}`;
  });
  const [first] = places[0].split(",");
  const line = `M${places.join("L")}`;
  svg.children[0].setAttribute("d", `${line}L${WIDTH},${HEIGHT}L${first},${HEIGHT}Z`);
  svg.children[1].setAttribute("d", line);
}
