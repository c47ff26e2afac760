// node cloudevents.cjs URL: one event in each mode, by the library's own transport, and a batch.
const { CloudEvent, Mode, emitterFor, httpTransport } = require("cloudevents");

const url = process.argv[2];
const event = (id, more = {}) =>
  new CloudEvent({
    id, type: "com.example.order", source: "/shop/42", subject: "a b%c", partitionkey: "k1",
    datacontenttype: "application/json", data: { id, "ü": "é" }, ...more,
  });

(async () => {
  await emitterFor(httpTransport(url))(event("binary"));
  await emitterFor(httpTransport(url), { mode: Mode.STRUCTURED })(event("structured"));
  await emitterFor(httpTransport(url))(event("latin", { subject: "zä" }));
  const headers = { "content-type": "application/cloudevents-batch+json" };
  const body = JSON.stringify([event("batch-1"), event("batch-2")]);
  const answer = await fetch(url, { method: "POST", headers, body });
  if (answer.status !== 204) throw new Error(`batch: ${answer.status}`);
})();
