// One report of /status into the page.

const SOURCE_STATES = { up: ["Up", "good"], starting: ["Starting", "warn"], down: ["Down", "bad"], off: ["Off", "idle"] };
const NO_VALUE = "–";

const FIGURES = [
  { name: "active", title: "Connections", least: 10 },
  { name: "published", title: "Events in", unit: "/s", least: 1 },
  { name: "delivered", title: "Events out", unit: "/s", least: 1 },
  { name: "lag", title: "Delivery lag", least: 0.01 },
  { name: "lagging", title: "Lagging streams", least: 1 },
];

class View {
  constructor() {
    this.figures = new Map(FIGURES.map((figure) => [figure.name, this.figure(figure)]));
    this.totals = new Rates();
    this.published = new Rates();
    this.delivered = new Rates();
    this.lagNow = new Rates();
    this.sources = new Table(byId("sources"), {
      title: "Sources",
      empty: "The configuration names no source.",
      columns: [["Source"], ["State"], ["Last event"], ["Waiting", "number"], ["Rejected", "number"]],
    });
    this.channels = new Table(byId("channels"), {
      title: "Channels",
      empty: "No worker answers.",
      columns: [["Channel"], ["From"], ["Listeners", "number"], ["In /s", "number"], ["Out /s", "number"]],
    });
    this.refusals = new Table(byId("refusals"), {
      title: "Recent refusals",
      empty: "Nobody was refused since the start.",
      columns: [["Reason"], ["Who"], ["Last", "number"], ["Times", "number"]],
    });
    this.workers = new Table(byId("workers"), {
      title: "Workers",
      empty: "",
      columns: [["Worker"], ["State"], ["Streams", "number"], ["Restarts", "number"], ["Running", "number"]],
    });
  }

  figure({ title, unit }) {
    const value = make("strong");
    const note = make("span", { class: "note" });
    const chart = makeChart();
    const shown = make("dd", {}, make("span", { class: "value" }, value, unit ?? ""), note, chart);
    byId("figures").append(make("div", { class: "figure" }, make("dt", {}, title), shown));
    return { value, note, chart, series: new Series() };
  }

  show(report) {
    const now = report.now_ms;
    this.head(report);
    this.numbers(report, now);
    this.tables(report, now);
    showConfig(report.config, now);
  }

  head(report) {
    const reasons = report.not_ready.join(", ");
    const readiness = byId("readiness");
    readiness.dataset.state = report.ready ? "good" : "bad";
    say(readiness, report.ready ? "Ready" : `Not ready: ${reasons || "no worker answers"}`);
    document.title = `${report.ready ? "" : "Not ready – "}sse-gateway`;
    const log = report.broker ? `log: ${report.broker.type}${report.broker.up ? "" : " (down)"}` : "";
    say(byId("facts"), [`version ${report.version}`, `up ${span(report.uptime_seconds)}`, log].filter(Boolean).join(" · "));
    byId("development").hidden = !report.development;
    const down = report.sources.filter((source) => source.status === "down").map((source) => source.name);
    announce([readiness.textContent, down.length ? `Down: ${down.join(", ")}` : ""].filter(Boolean).join(". "));
  }

  numbers(report, now) {
    const { streams, totals, channels } = report;
    this.totals.add(now, new Map(Object.entries(totals)));
    this.published.add(now, new Map(channels.map(({ name, published }) => [name, published])));
    this.delivered.add(now, new Map(channels.map(({ name, delivered }) => [name, delivered])));
    const [lagSeconds] = this.totals.growth("lag_seconds");
    const [lagCount] = this.totals.growth("lag_count");
    const lag = lagCount ? lagSeconds / lagCount : 0;
    const into = this.totals.perSecond("published");
    const out = this.totals.perSecond("delivered");
    this.set("active", now, streams.active, numbers.format(streams.active), `of ${numbers.format(streams.limit)}`);
    this.set("published", now, into, rate(into), `${numbers.format(totals.published)} in all`);
    this.set("delivered", now, out, rate(out), `${bytes(this.totals.perSecond("bytes_sent"))}/s`);
    this.set("lag", now, lag, lagCount ? delay(lag) : NO_VALUE, "append to socket, mean");
    const behind = streams.lagging ? `furthest ${delay(streams.lag_seconds)} behind` : "all are up to date";
    this.set("lagging", now, streams.lagging, numbers.format(streams.lagging), `${behind}; ${plural(totals.gaps, "gap")} told`);
  }

  set(name, now, value, text, note) {
    const figure = this.figures.get(name);
    figure.series.add(now, value);
    say(figure.value, text);
    say(figure.note, note);
    draw(figure.chart, figure.series, now, FIGURES.find((each) => each.name === name).least);
  }

  tables(report, now) {
    this.sources.show(report.sources, (source) => sourceRow(source, now));
    this.channels.show(report.channels, (channel) => [
      channel.name,
      [channel.name, channel.stale ? mark("silent for too long", "warn") : null],
      channel.from.map((from) => small(from)),
      numbers.format(channel.listeners),
      rate(this.published.perSecond(channel.name)),
      rate(this.delivered.perSecond(channel.name)),
    ]);
    this.refusals.show(report.recent_errors, (refusal) => [
      [refusal.kind, refusal.code, refusal.source, refusal.origin, refusal.client].join(" "),
      [refusal.code, small(refusal.reason)],
      whoWas(refusal).map((who) => small(who)),
      ago(refusal.last_at_ms, now),
      numbers.format(refusal.count),
    ]);
    byId("workers").hidden = !report.workers;
    this.workers.show(report.workers ?? [], (worker) => [
      `worker ${worker.worker}`,
      [`worker ${worker.worker}`, small(`pid ${worker.pid ?? NO_VALUE}`)],
      worker.ready ? mark("Ready", "good") : mark("Not ready", "bad"),
      worker.streams === null ? NO_VALUE : numbers.format(worker.streams),
      numbers.format(worker.restarts),
      worker.uptime_seconds === null ? NO_VALUE : span(worker.uptime_seconds),
    ]);
  }
}

function sourceRow(source, now) {
  const [word, state] = SOURCE_STATES[source.status] ?? [source.status, "warn"];
  const reader = { true: "read by this node", false: "read by another node" }[source.leader];
  const rejected = Object.entries(source.rejected).sort(([, one], [, two]) => two - one);
  return [
    source.name,
    [source.name, small(reader ? `${source.type}, ${reader}` : source.type)],
    [
      mark(word, state),
      source.since_ms ? small(`for ${span((now - source.since_ms) / 1000)}`) : null,
      source.stale ? mark("silent for too long", "warn") : null,
      source.last_error ? small(source.last_error, source.status === "down" ? "bad" : "") : null,
    ],
    [ago(source.last_event_ms, now), small(`${numbers.format(source.received)} in all`)],
    source.lag === null ? NO_VALUE : numbers.format(source.lag),
    rejected.length ? rejected.map(([reason, count]) => small(`${reason} ${numbers.format(count)}`)) : "0",
  ];
}

/** Return what is known of who was refused. */
function whoWas({ kind, source, origin, client }) {
  const who = [source ? `source ${source}` : kind === "admin" ? "admin port" : null, origin, client];
  const known = who.filter(Boolean);
  return known.length ? known : [NO_VALUE];
}

const RESULTS = { ok: ["Reloaded", "good"], unchanged: ["Reloaded unchanged", "good"], failed: ["Reload failed", "bad"] };

/** Show which file is in use, and how the last reload went. */
function showConfig(config, now) {
  byId("config").hidden = !config;
  if (!config) return;
  say(byId("config-file"), `${config.file}, in use for ${span((now - config.loaded_ms) / 1000)}`);
  const last = config.last_reload;
  const result = byId("config-result");
  result.hidden = !last;
  if (!last) {
    showFaults([]);
    return;
  }
  const [word, state] = RESULTS[last.result] ?? [last.result, "warn"];
  const parts = [mark(`${word} ${ago(last.at_ms, now)}`, state)];
  if (last.message && !last.errors.length) parts.push(small(last.message)); // else the list tells all
  const next = make("p", {}, ...parts);
  if (result.innerHTML !== next.innerHTML) result.replaceChildren(...next.childNodes);
  showFaults(last.errors);
}

function showFaults(faults) {
  const list = byId("config-errors");
  list.hidden = !faults.length;
  const next = faults.map(({ line, column, path, message }) =>
    make("li", {}, make("code", {}, `${line}:${column} ${path}`), small(message)),
  );
  const shown = make("ol", {}, ...next);
  if (list.innerHTML !== shown.innerHTML) list.replaceChildren(...shown.childNodes);
}

/** Tell a screen reader what changed: states, never figures. */
function announce(text) {
  say(byId("announcer"), text);
}
