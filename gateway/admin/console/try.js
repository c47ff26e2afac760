// The try-it panel: listens to a channel, and sends an event to it.

const MOST_EVENTS = 50;
const MOST_CHARACTERS = 4000;
const STREAM_SILENCE_MS = 90000;

class TryIt {
  constructor() {
    this.stream = null;
    this.heard = 0;
    this.waiting = [];
    byId("try").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("try-listen").addEventListener("click", () => (this.stream ? this.end("Not listening.") : this.listen()));
    byId("try-channel").addEventListener("input", () => this.end("Not listening."));
  }

  /** Show the panel as the gateway allows it. */
  show(report) {
    byId("try-off").hidden = report.development;
    byId("try").hidden = byId("try-heard").hidden = !report.development;
    const names = report.channels.map(({ name }) => name).slice(0, 500);
    const list = byId("try-channels");
    if (list.dataset.names !== names.join(" ")) {
      list.dataset.names = names.join(" ");
      list.replaceChildren(...names.map((name) => make("option", { value: name })));
      const input = byId("try-channel");
      if (!input.value) input.value = names.find((name) => !name.includes("{")) ?? names[0] ?? "";
    }
  }

  /** Listen; returns a promise of whether the stream opened. */
  listen() {
    if (!byId("try").reportValidity()) return Promise.resolve(false);
    const channel = byId("try-channel").value.trim();
    byId("try-listen").setAttribute("aria-pressed", "true");
    say(byId("try-listen"), "Stop");
    say(byId("try-state"), `Connecting to ${channel}.`);
    return new Promise((resolve) => {
      this.stream = follow(`try/events?channel=${encodeURIComponent(channel)}`, STREAM_SILENCE_MS, {
        open() {},
        event: (event) => {
          if (event.type === "stream.open") {
            say(byId("try-state"), `Listening to ${channel}.`);
            resolve(true);
          } else {
            this.take(event);
          }
        },
        lost: (why) => {
          say(byId("try-state"), `Connection lost: ${why}. Trying again.`);
          resolve(false);
        },
        refused: ({ status, message }) => {
          this.end(status === 404 ? `Refused: ${message}.` : `Refused (${status}): ${message}.`);
          resolve(false);
        },
      });
    });
  }

  end(why) {
    this.stream?.stop();
    this.stream = null;
    byId("try-listen").setAttribute("aria-pressed", "false");
    say(byId("try-listen"), "Listen");
    say(byId("try-state"), why);
  }

  /** Keep the newest events for the next frame: a fast channel must not freeze the page. */
  take(event) {
    this.heard += 1;
    this.waiting.push(event);
    if (this.waiting.length > MOST_EVENTS) this.waiting.shift();
    if (this.waiting.length === 1) setTimeout(() => this.write(), 50);
  }

  write() {
    const log = byId("try-log");
    log.prepend(...this.waiting.splice(0).reverse().map(heardEvent));
    while (log.children.length > MOST_EVENTS) log.lastChild.remove();
    say(byId("try-log-title"), `What arrived (${numbers.format(this.heard)})`);
  }

  /** Send the event; who does not listen yet listens first, and sees it arrive. */
  async send() {
    const said = byId("try-said");
    const [channel, type, payload] = ["channel", "type", "payload"].map((name) => byId(`try-${name}`).value.trim());
    let body;
    try {
      JSON.parse(payload);
      // As it was typed: parsing it and writing it again would change large numbers.
      body = `{"channel":${JSON.stringify(channel)},"type":${JSON.stringify(type || null)},"payload":${payload}}`;
    } catch {
      body = JSON.stringify({ channel, type: type || null, payload });
    }
    if (!this.stream && !(await this.listen())) {
      say(said, "");
      return;
    }
    try {
      const headers = credentials({ "Content-Type": "application/json" });
      const answer = await fetch("try/events", { method: "POST", headers, body });
      if (answer.ok) say(said, `Sent as ${(await answer.json()).id}.`);
      else say(said, `Not sent: ${(await refusalOf(answer)).message}.`);
    } catch {
      say(said, "Not sent: the gateway cannot be reached.");
    }
  }
}

/** Return the line of an event: an envelope's payload, and the whole of the gateway's own. */
function heardEvent({ type, id, data }) {
  const at = data.indexOf('"payload":'); // no string before it can hold these quotes
  const isOwn = type.startsWith("stream.");
  const text = isOwn || at < 0 ? data : data.slice(at + 10, -1);
  const cut = text.length > MOST_CHARACTERS;
  const shown = cut ? `${text.slice(0, MOST_CHARACTERS)}… ${plural(text.length - MOST_CHARACTERS, "more character")}` : text;
  const head = make("p", { class: "muted" }, make("strong", {}, type), id ? ` ${id}` : "");
  return make("li", { "data-state": isOwn ? "warn" : "" }, head, make("pre", {}, shown));
}
